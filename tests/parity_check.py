import torch,sys,json
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from deltamem_agents.adapter import *
root=Path("../shared/parity")
for impl in ("eager","sdpa"):
    for case in sorted(p for p in root.iterdir() if p.is_dir()):
        b=AutoModelForCausalLM.from_pretrained(case/"base",attn_implementation=impl).eval()
        m=DeltaMemModel(b,DeltaMemAdapter.from_pretrained(case))
        e=load_file(case/"expected.safetensors")
        def st(ph): return torch.stack([e[f"{ph}.state.{p}"].reshape(2,-1,*e[f"{ph}.state.{p}"].shape[-2:]) for p in m.adapter.paths],1)
        spans=e.get("write_message_ids",e.get("write_sentence_ids")) if m.adapter.config.spans else None
        if m.adapter.config.write_granularity=="sentence_mean": spans=e["write_sentence_ids"]
        with torch.no_grad():
            o=m(e["input_ids"],e["attention_mask"],e["position_ids"],spans=spans)
            mask=e["attention_mask"].bool(); d=[]
            d.append((o.logits-e["prefill.logits"])[mask].abs().max().item()); d.append((o.state.tensor-st("prefill")).abs().max().item())
            am=e["attention_mask"];c=o.past_key_values;s=o.state;L=[]
            for t in range(3):
                am=torch.cat([am,am.new_ones(2,1)],1)
                x=m(e["decode.input_ids"][:,t:t+1],am,past_key_values=c,state=s); s=x.state;L.append(x.logits)
            d.append((torch.cat(L,1)-e["decode.logits"]).abs().max().item()); d.append((s.tensor-st("decode")).abs().max().item())
            r=m(e["read_only.input_ids"],state=s,write=False); d.append((r.logits-e["read_only.logits"]).abs().max().item()); d.append((r.state.tensor-st("read_only")).abs().max().item())
            z=m(e["read_only.input_ids"],write=False); d.append((z.logits-e["empty_state.logits"]).abs().max().item())
            assert torch.equal(z.logits,m.detach()(e["read_only.input_ids"]).logits)
        print(impl,case.name,max(d), "" if max(d)<1e-4 else d)
