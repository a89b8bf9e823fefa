"""lm-eval's `local-completions` with the border between context and continuation, so that continuations are scored as decoded.

`lm_eval --model local-completions` sends both as one prompt. A strategy that acts on decoded tokens then has none to act on,
and its layers run at every position (`score_mode: one-pass`). This model tells the server where each context ends:

    python scripts/serve/skipbench_lm.py --model skipbench --model_args model=base:unified@2,base_url=…,tokenizer=… --tasks …
"""

from lm_eval.api.registry import register_model
from lm_eval.models.openai_completions import LocalCompletionsAPI


@register_model("skipbench")
class SkipbenchCompletions(LocalCompletionsAPI):
    def batch_loglikelihood_requests(self, chunks):
        inputs, context_lengths, cache_keys = super().batch_loglikelihood_requests(chunks)
        # A request is made of the tokens alone; a list that knows its border brings it along.
        inputs = [Bordered(tokens, border) for tokens, border in zip(inputs, context_lengths)]
        return inputs, context_lengths, cache_keys

    def _create_payload(self, messages, generate=False, **kwargs):
        payload = super()._create_payload(messages, generate=generate, **kwargs)
        if not generate:
            payload["context_tokens"] = [tokens.border for tokens in messages]
        return payload


class Bordered(list):
    """Token ids, the first `border` of which are context."""

    def __init__(self, tokens, border):
        super().__init__(tokens)
        self.border = border


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
