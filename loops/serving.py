"""`sail serve`: a server of the config's starting model, for runs elsewhere with vllm.mode: external."""

import time
from pathlib import Path

from rich.console import Console

from sail.core.errors import UserError
from sail.core.run_settings import RunSettings
from sail.policy.loading import context_length, is_encoder_decoder, model_folder, resolve_model
from sail.serving.server import VllmServer

_POLL_S = 1.0


def serve_forever(settings: RunSettings, console: Console) -> None:
    """Start the server, print its URL, and watch it until Ctrl-C or its death."""
    model = resolve_model(settings.model_name_or_path, settings.revision)
    if is_encoder_decoder(model):
        raise UserError(
            f"{settings.model_name_or_path!r} is an encoder-decoder, which vLLM does not serve", where="sail serve",
            cure="Set generation.engine: transformers in the run, which needs no server",
        )  # fmt: skip
    log_path = Path("runs") / "serve" / f"vllm-{model.key}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    console.print(f"starting vLLM, log in {log_path}", highlight=False)
    length = settings.vllm.max_model_len or context_length(model)
    with VllmServer.start(
        model_folder(model), settings=settings.vllm, log_path=log_path, max_model_len=length
    ) as server:
        console.print(f"serving at {server.base_url}; in the run's config:", highlight=False)
        console.print(f"vllm: {{mode: external, server_urls: ['{server.base_url}']}}", highlight=False)
        while server.alive():
            time.sleep(_POLL_S)
    raise UserError("the server died", where="sail serve", cure=f"Read {log_path}")
