"""Tokens per second of `skipbench generate`, the binaries and types taking turns.
One process per cell and round answers several batches of the same prompts; what counts is the time between the answers of one batch and the next."""
import subprocess, sys, time, json, statistics as st, random
model, rounds, batches = sys.argv[1], int(sys.argv[2]), [int(b) for b in sys.argv[3].split(',')]
cells=[c.split(':') for c in sys.argv[4:]]  # binary:dtype
def pace(binary, dtype, b, n_batches=4, tokens=64):
    text='\n'.join(json.dumps({"prompt": f"The capital of country {i % b} is"}) for i in range(b*n_batches))
    open('/tmp/pace.jsonl','w').write(text+'\n')
    p=subprocess.Popen([binary,'generate','--model',model,'--input','/tmp/pace.jsonl','--batch-size',str(b),'--max-new-tokens',str(tokens),'--ignore-eos','--dtype',dtype],stdout=subprocess.PIPE,stderr=subprocess.DEVNULL)
    times=[]
    for i,line in enumerate(p.stdout):
        if (i+1)%b==0: times.append(time.time())
    p.wait()
    gaps=[y-x for x,y in zip(times,times[1:])]
    return b*tokens/st.median(gaps)
res={}
for r in range(rounds):
    for b in batches:
        order=cells[:]; random.Random(r).shuffle(order)
        for binary,d in order:
            res.setdefault((b,binary,d),[]).append(pace(binary,d,b))
for b in batches:
    base=res[(b,*cells[0])]
    for binary,d in cells:
        v=res[(b,binary,d)]
        ratios=[x/y for x,y in zip(v,base)]
        print(f"batch {b} {binary} {d}: {st.median(v):.1f} tok/s  [{min(v):.1f}, {max(v):.1f}]  ratio {st.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]", flush=True)
