"""`sail serve`: a server of the config's starting model, for runs elsewhere with vllm.mode: external."""

import os
import socket
import time
from pathlib import Path

from rich.console import Console

from sail.core.artifacts import leaf
from sail.core.errors import UserError
from sail.core.run_settings import RunSettings
from sail.policy.loading import context_length, is_encoder_decoder, model_folder, resolve_model
from sail.serving.ports import LOOPBACK
from sail.serving.server import VllmServer

_POLL_S = 1.0
_EVERYWHERE = "0.0.0.0"


def serve_forever(settings: RunSettings, console: Console) -> None:
    """Start the server, print its URL, and watch it until Ctrl-C or its death."""
    model = resolve_model(settings.model_name_or_path, settings.revision)
    if is_encoder_decoder(model):
        raise UserError(
            f"{settings.model_name_or_path!r} is an encoder-decoder, which vLLM does not serve", where="sail serve",
            cure="Set generation.engine: transformers in the run, which needs no server",
        )  # fmt: skip
    log_path = Path("runs") / "serve" / f"vllm-{model.key}-{os.getpid()}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    console.print(f"starting vLLM, log in {log_path}", highlight=False)
    length = settings.vllm.max_model_len or context_length(model)
    if settings.vllm.host != LOOPBACK:
        console.print(f"[yellow]warning[/] whoever reaches {settings.vllm.host} can change this server's weights")
    template = settings.chat_template
    with VllmServer.start(
        model_folder(model),
        version=model.key,
        settings=settings.vllm.replace(mode="server", weight_transfer=None),
        log_path=log_path,
        max_model_len=length,
        lora_rank=settings.lora.r if settings.lora and settings.vllm.lora == "load" else None,
        chat_template=None if template is None else leaf(Path(template), "chat_template").path,
    ) as server:
        url = server.base_url.replace(_EVERYWHERE, socket.gethostname())
        console.print(f"serving at {url}; in the run's config, with the URLs of all such servers:", highlight=False)
        console.print(f"vllm: {{mode: external, server_urls: ['{url}']}}", highlight=False)
        while server.alive():
            time.sleep(_POLL_S)
    raise UserError("the server died", where="sail serve", cure=f"Read {log_path}")
