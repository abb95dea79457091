"""The policy while it trains, as a checkpoint: engines and log-probs take it, and no whole model reaches a disk.

full weights, in process     the model itself; only its configuration and tokenizer are files
full weights, for a server   safetensors in shared memory (tmpfs) without a name: the folder links to this process's
                             open files, which the kernel frees with the process, however it ends
an adapter, for a server     a folder of its own for every version; adapters are small
"""

import os
import shutil
from pathlib import Path
from typing import Self

from transformers import PreTrainedTokenizerBase

from sail.core.errors import UserError
from sail.core.records import content_hash
from sail.policy.loading import PolicyModel, Resident, model_folder_in, save_policy

_SHARED_MEMORY = Path("/dev/shm")


class LivePolicy:
    """Hands out the model under one version after the other; the folder of a version lives until the next one.

        with LivePolicy(model, tokenizer, scratch / "policy", served=True) as live:
            engine.use(live.at("version 1"))

    served: a server is to load it.
    """

    def __init__(self, model: PolicyModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, served: bool) -> None:
        self._model: PolicyModel | None = model
        self._tokenizer, self._folder, self._served = tokenizer, folder, served
        self._open_files: list[int] = []

    def at(self, version: str) -> Resident:
        """The policy as it is now."""
        self._forget_files()
        folder = self._folder / version
        folder.mkdir(parents=True)
        model = self._here()
        if not self._served:
            model.config.save_pretrained(model_folder_in(folder))
            model.generation_config.save_pretrained(model_folder_in(folder))  # type: ignore[union-attr]
            self._tokenizer.save_pretrained(model_folder_in(folder))
        elif hasattr(model, "peft_config"):
            save_policy(model, self._tokenizer, folder)
        else:
            self._save_to_memory(model, folder)
        return Resident(version, model_folder_in(folder), self._here)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Whoever still holds a version holds no weights."""
        self._forget_files()
        self._model = None

    def _here(self) -> PolicyModel:
        assert self._model is not None, "the policy has stopped training"
        return self._model

    def _forget_files(self) -> None:
        while self._open_files:
            os.close(self._open_files.pop())
        shutil.rmtree(self._folder, ignore_errors=True)

    def _save_to_memory(self, model: PolicyModel, folder: Path) -> None:
        # named after our folder, so what a kill in the middle leaves goes when this update is resumed
        written = _SHARED_MEMORY / f"sail-{content_hash(str(self._folder.resolve()), 16)}"
        shutil.rmtree(written, ignore_errors=True)
        self._check_room(model)
        try:
            save_policy(model, self._tokenizer, written)
            model_folder_in(folder).mkdir()
            for file in model_folder_in(written).iterdir():
                here = model_folder_in(folder) / file.name
                if file.suffix == ".safetensors":
                    self._open_files.append(os.open(file, os.O_RDONLY))
                    here.symlink_to(f"/proc/{os.getpid()}/fd/{self._open_files[-1]}")
                else:
                    shutil.copyfile(file, here)
        finally:
            shutil.rmtree(written, ignore_errors=True)

    def _check_room(self, model: PolicyModel) -> None:
        needed = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else 0
        if free < needed:
            raise UserError(
                f"{needed:,} bytes of weights do not fit into {_SHARED_MEMORY}, which has {free:,} free",
                where="steps_per_generation", cure="Enlarge it (docker run --shm-size), or train a LoRA adapter",
            )  # fmt: skip
