"""Training of the small model from nothing, on its own world (paper section 3.3 and 4.1; design.md section 4).

config.py      settings: a dataclass, a YAML or TOML file over it, name=value over that
command.py     what the four commands share
loop.py        run folder, checkpoints, exact resume, progress, schedule, EMA; curve.py draws the loss, board.py feeds
               TensorBoard, samples.py writes answers to look at
muon.py        the optimizer; fast.py bfloat16 and the vision tower in large batches

vae.py         the picture VAE (vae_data.py)
pretrain.py    the MLLM from nothing: language, then vision (vision.py); tokenizer.py
stage1.py      the MLLM answers and knows when to draw
stage2.py      connector and DiT, MLLM frozen (stage2_data.py)
assemble.py    the parts as one checkpoint
finetune.py    both stages from a finished checkpoint, on one's own documents with replay

mllm.py        what pretrain and stage1 share; mllm_data.py what they learn from, next_token.py their loss, recall.py
               what its states should know, bov.py a start for <BOV>
lora.py        LoRA for stage1 and stage2
"""
