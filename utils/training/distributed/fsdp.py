"""The frozen LLM divided among processes: asked for by ``--shard_llm``, or by a launcher's FSDP.

What is trained stays whole in every process, and DistributedDataParallel averages its gradients: so
checkpoints are whole, and go on with the LLM divided or not, on any number of processes.
"""

from __future__ import annotations

from logging import getLogger

from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from utils.config import Config, ConfigError
from utils.errors import UserError
from utils.process_memory import mib
from utils.training.distributed.plain import Wing
from utils.training.run_state import RunContext

log = getLogger(__name__)


class DividedLLM(Wing):
    """Each process keeps its share of every frozen layer."""

    def check(self, config: Config, accelerator: Accelerator) -> None:
        """Refuse what processes that wait for each other in every layer can not do.

        Raises:
            ConfigError: a batch size is to be found by trying.
        """
        several = accelerator.num_processes > 1
        tries = config.training.auto_batch_size and accelerator.device.type != "cpu"
        if several and tries and config.run.is_training:
            raise ConfigError(
                [
                    "--auto_batch_size: on a GPU it tries batches until one fits, and a process without room "
                    "would leave the others waiting in a layer; give --batch_size, or drop --shard_llm"
                ]
            )

    def divide(self, ctx: RunContext) -> None:
        """Divide the frozen layers of the run's LLM, and say what came of it.

        Before the model goes to its device: that never holds more than one whole layer.
        """
        processes = ctx.accelerator.num_processes
        if not ctx.plain.uses_llm or processes == 1:
            reason = "one process" if ctx.plain.uses_llm else f"{ctx.plain.name} has no LLM"
            log.info("--shard_llm: %s: nothing is sharded", reason)
            return
        from layers.llm.fsdp import shard_layers

        if ctx.plain._pass.way.passes_differ:
            raise UserError(
                "--shard_llm: expected an LLM whose passes are as many in every process, found one that "
                "takes a pass for each length of the prompts in a batch; drop --shard_llm"
            )
        shard_layers(ctx.plain.llm_model, init_device_mesh(ctx.accelerator.device.type, (processes,)))
        shares = [p for p in ctx.plain.parameters() if isinstance(p, DTensor)]
        whole = sum(p.numel() * p.element_size() for p in shares)
        held = sum(p.to_local().numel() * p.element_size() for p in shares)
        self.lockstep = True
        log.info(
            "--shard_llm: the LLM's frozen layers (%s) are divided among %d processes, %s in this one; its "
            "word embeddings and what is trained are whole in each",
            mib(whole),
            processes,
            mib(held),
        )

    def _data_parallel(self, ctx: RunContext) -> nn.Module:
        if not self.lockstep:
            return super()._data_parallel(ctx)
        # accelerate wraps no model of which a part is divided; torch does, where it is told to pass over it
        accelerator = ctx.accelerator
        model = accelerator.prepare_model(ctx.plain, device_placement=False, evaluation_mode=True)
        devices = None if accelerator.device.type == "cpu" else [accelerator.local_process_index]
        return DistributedDataParallel(model, device_ids=devices, **accelerator.ddp_handler.to_kwargs())
