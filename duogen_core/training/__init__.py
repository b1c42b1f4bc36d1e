"""Training of both stages on documents of any source (paper sections 3.3 and 4.1); it knows no Sketchbook.

configuration.py  settings: a dataclass, a YAML or TOML file over it, name=value over that; recipes/
command.py        what the `train` commands share; several processes (launch/)
stage1.py         the MLLM answers and knows when to draw; next_token.py its loss
stage2.py         connector and DiT, MLLM frozen; stage2_data.py its settings, and documents as latents and states
data.py           examples of a step: sources, or a world such as Sketchbook; samples.py answers to look at
feeding.py        the share of a process, read ahead by worker processes
run.py            precision, optimizers, EMA; the run folder and its loop, exact resume
checkpoints.py    written whole or not at all; metrics.py what is written and printed beside them
validation.py     stage 2's loss on what is not learnt from
throughput.py     speed, share of the peak, waiting, memory; trackers.py TensorBoard, Weights & Biases
distributed.py    DDP and FSDP
lora.py           LoRA for MLLM and DiT
finetune.py       both stages from a finished checkpoint, on one's own documents with replay
assemble.py       the parts as one checkpoint

A step of stage 2, from `train stage2` to the optimizers, in the order in which it is read:
1. configuration.py    settings of every run: `load_config`, RunConfig
2. stage2.py           `train`, `learn`: a document becomes a sample, samples become a loss
3. stage2_data.py      settings of stage 2; the batch of the step
4. distributed.py      the share of this process
5. ../connector.py     states of the MLLM -> text condition of the DiT
6. ../dit/packing.py   `forward_train`: the samples of a pass in one sequence
7. ../dit/frames.py    the way of a pass through the blocks
8. run.py              `update`: backward, clip, Muon and AdamW; the average of the weights
"""
