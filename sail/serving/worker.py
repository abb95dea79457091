"""The part of sail that runs inside vLLM's workers: their `--worker-extension-cls`."""

import os
import time
from typing import Any, cast

import torch
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding


class WeightReloader:
    """Methods vLLM mixes into its Worker; the driver calls them by name through /collective_rpc."""

    sail_served_version: str | None = os.environ.get("SAIL_MODEL_VERSION")
    sail_num_changes = 0  # how often the whole model was given new weights

    def sail_reload(self, weights_path: str, version: str) -> dict[str, Any]:
        """Load all weights of a directory in place and remember which version they are."""
        start = time.monotonic()
        worker: Any = self
        self.sail_num_changes += 1
        self.sail_served_version = None  # a reload that fails half-way leaves no version
        worker.reload_weights(weights_path=weights_path)
        repacked = repack_tied_heads(worker.model_runner.get_model())
        self.sail_served_version = version
        return {"version": version, "repacked": repacked, "seconds": time.monotonic() - start}

    def sail_received(self, version: str) -> dict[str, Any]:
        """Weights of this version have come in from the trainer's GPU (sail.serving.weight_transfer)."""
        self.sail_num_changes += 1
        repacked = repack_tied_heads(cast(Any, self).model_runner.get_model())
        self.sail_served_version = version
        return {"version": version, "repacked": repacked}

    def sail_state(self) -> dict[str, Any]:
        """The version of the whole model (None after a failed reload), how often it was changed, its number format,
        whether adapters can be loaded, and how weights can be handed over."""
        worker: Any = self
        runner, transfer = worker.model_runner, worker.vllm_config.weight_transfer_config
        return {
            "version": self.sail_served_version,
            "num_changes": self.sail_num_changes,
            "dtype": str(runner.model_config.dtype).removeprefix("torch."),
            "takes_adapters": runner.lora_config is not None,
            "transfer": transfer and transfer.backend,
        }


def repack_tied_heads(model: torch.nn.Module) -> int:
    """Pack again every output layer that shares its weight with an embedding; how many there were.

    On CPU vLLM multiplies with a packed copy of lm_head. A checkpoint of a tied model has no tensor of that
    name, so a reload leaves the old copy in place: a silently wrong model. On GPU there is no copy and this
    does nothing.
    """
    tables: list[Any] = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    heads: list[Any] = [table for table in tables if isinstance(table, ParallelLMHead)]
    embeddings = {table.weight.data_ptr() for table in tables if table not in heads}
    tied = [head for head in heads if head.weight.data_ptr() in embeddings]
    for head in tied:
        head.quant_method.process_weights_after_loading(head)
    return len(tied)
