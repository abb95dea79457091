"""`python -m sail.serving.colocated --uds PATH FLAGS...`: vLLM's engine inside this one process, for mode colocate.

    driver --(HTTP over a unix socket)--> thread of endpoints --> desk --> engine (main thread)

It answers the few requests of sail.serving.client in the words of vLLM's API server, so a client cannot tell them
apart. A process of its own, because vLLM binds the threads and keeps the memory of the process it runs in; only one,
because the engine is in it: there is nothing to be orphaned, and the guard above ends it with the driver.
"""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.llm_engine import LLMEngine

from sail.serving.engine_desk import Desk, Json, reply_of

_Job = Callable[[Request, Json], Any]


def main(argv: list[str]) -> None:
    parser = FlexibleArgumentParser()
    parser.add_argument("--uds", required=True)
    arguments = EngineArgs.add_cli_args(parser).parse_args(argv)
    [name] = arguments.served_model_name
    desk = Desk(LLMEngine.from_engine_args(EngineArgs.from_cli_args(arguments)), name)
    server = uvicorn.Server(uvicorn.Config(application(desk), uds=arguments.uds, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()  # the engine's thread stays the one that made it
    desk.work()


def application(desk: Desk) -> Starlette:
    """The endpoints of vLLM's server that sail asks."""
    posts: dict[str, _Job] = {
        "/reset_prefix_cache": lambda _, __: {"success": desk.engine.reset_prefix_cache()},
        "/collective_rpc": lambda _, body: {
            "results": desk.engine.collective_rpc(body["method"], kwargs=body["kwargs"])
        },
        "/v1/load_lora_adapter": lambda _, body: desk.load_adapter(body["lora_name"], body["lora_path"]),
        "/v1/unload_lora_adapter": lambda _, body: desk.unload_adapter(body["lora_name"]),
        "/sleep": lambda request, _: desk.engine.sleep(int(request.query_params["level"])),
        "/wake_up": lambda _, __: desk.engine.wake_up() and None,
    }
    return Starlette(
        routes=[
            Route("/health", _health),
            Route("/v1/models", _models(desk)),
            Route("/v1/completions", _completions(desk), methods=["POST"]),
            *(Route(path, _between_steps(desk, job), methods=["POST"]) for path, job in posts.items()),
        ]
    )


async def _health(request: Request) -> Response:
    return Response()


def _models(desk: Desk) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        length = desk.engine.model_config.max_model_len
        base = {"id": desk.model_name, "parent": None, "max_model_len": length}
        return JSONResponse({"data": [base, *({"id": name, "parent": desk.model_name} for name in [*desk.adapters])]})

    return answer


def _completions(desk: Desk) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        body = await request.json()
        if body["model"] != desk.model_name and body["model"] not in desk.adapters:
            return JSONResponse({"error": f"there is no model {body['model']}"}, 404)
        number, promise = desk.complete(body)
        output, left = asyncio.wrap_future(promise), asyncio.ensure_future(_left(request))
        either: set[asyncio.Future[Any]] = {output, left}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        if not output.done():
            desk.forget(number)
            return Response(status_code=499)
        if error := output.exception():
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse(reply_of(output.result()))

    return answer


def _between_steps(desk: Desk, job: _Job) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        body = await request.json() if await request.body() else {}
        return JSONResponse(await asyncio.wrap_future(desk.do(lambda: job(request, body))))

    return answer


async def _left(request: Request) -> None:
    """Returns when the asker has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
