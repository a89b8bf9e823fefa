//! Equal to candle-transformers' stock LLaMA, an implementation that shares no code with ours but the tensors.

use crate::support::{argmax, assert_close, expected, fixture, load};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use skipbench_model::{Backend, CausalLm, Span};

#[test]
fn stock_llama_gives_the_same_logits_and_tokens() {
    for name in ["llama1", "llama2-gqa-tied"] {
        let dir = fixture(name);
        let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let config = serde_json::from_str::<LlamaConfig>(&config)
            .unwrap()
            .into_config(false);
        let weights = dir.join("model.safetensors");
        // SAFETY: nobody writes to a committed fixture.
        let weights =
            unsafe { VarBuilder::from_mmaped_safetensors(&[weights], DType::F32, &Device::Cpu) };
        let stock = Llama::load(weights.unwrap(), &config).unwrap();
        let ours = load(&dir, Backend::Auto);
        let all: Vec<usize> = (0..ours.sizes().n_layers).collect();
        for row in expected(name) {
            let mut stock_cache = Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
            let mut cache = ours.new_cache(1, vec![32; all.len()]).unwrap();
            let mut ids = row.prompt.clone();
            let mut start = 0;
            for _ in 0..8 {
                let input = Tensor::new(&ids[..], &Device::Cpu)
                    .unwrap()
                    .unsqueeze(0)
                    .unwrap();
                let theirs = stock.forward(&input, start, &mut stock_cache).unwrap();
                let theirs = theirs.squeeze(0).unwrap().to_vec1::<f32>().unwrap();
                let span = Span {
                    row: 0,
                    start,
                    len: ids.len(),
                };
                let found = crate::support::logits(&ours, &ids, &mut cache, &[span], &all);
                assert_close(found.last().unwrap(), &theirs, 1e-4, name);
                start += ids.len();
                ids = vec![argmax(&theirs)];
            }
        }
    }
}
