"""Flags of the Time-LLM family that this project refuses, each with what to do instead.

A flag that a script carries over is never passed over in silence: it works, or it is named here.
"""

from __future__ import annotations

REFUSED = {
    "use_amp": "half precision is --mixed_precision bf16 or fp16",
    "pct_start": "--lradj TST rises over the first fifth of the run; other shares are not offered",
    "warmup_steps": "the module losses warm up over --aux_warmup_steps, the rate over --lr_warmup_steps",
    "align_epochs": "there is no separate alignment phase: all trained parts learn together",
    "loader": "the data set is chosen by --data",
    "output_attention": "attention maps are not computed, so that faster kernels can be used",
    "inverse": "scores are in standardised units, as published; the checkpoint holds mean and deviation",
    "use_gpu": "a GPU is used where there is one; --cpu keeps away from it",
    "gpu": "choose a GPU by the environment variable CUDA_VISIBLE_DEVICES",
    "gpu_type": "a GPU is used where there is one; --cpu keeps away from it",
    "use_multi_gpu": "several GPUs or processes are started by accelerate launch or torchrun",
    "devices": "choose GPUs by the environment variable CUDA_VISIBLE_DEVICES",
    "optimizer": "the optimizer is AdamW (Adam where --weight_decay is 0)",
    "distil": "Informer's distilling belongs to a model that is not offered",
    "top_p": "there is no sampling: the forecast is read from the LLM's states",
    "individual": "DLinear's and Linear's maps are shared by all variables",
    "revin": "instance normalisation is part of each model that has it",
    "decomposition": "DLinear's decomposition is always on",
    "kernel_size": "the moving average's length is --moving_avg",
    "fc_dropout": "there is one rate, --dropout",
    "head_dropout": "there is one rate, --dropout",
}
