"""Is it alive, is it ready, how does it do, and which model does it serve?"""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from deltamem_agents.serve.errors import RETRY
from deltamem_agents.serve.service import TheNamespace, TheService

router = APIRouter(tags=["operations"])
CREATED = 1_750_000_000
"""The model's time of making, which OpenAI's API wants to be told."""


@router.get("/health")
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "alive"}


@router.get("/ready")
async def ready(service: TheService) -> Response:
    """Whether calls are answered: 503 while the model is loaded and while the server stops."""
    if service.ready:
        return JSONResponse({"status": "ready"})
    why = "draining" if service.gate.draining else "loading"
    return JSONResponse({"status": why}, status_code=503, headers=RETRY)


@router.get("/metrics")
async def metrics(service: TheService) -> Response:
    """Figures for Prometheus."""
    return Response(await run_in_threadpool(service.metrics.text), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models", tags=["OpenAI"])
async def models(service: TheService, namespace: TheNamespace) -> dict[str, object]:
    """The model that is served."""
    return {"object": "list", "data": [_model(service)]}


@router.get("/v1/models/{model}", tags=["OpenAI"])
async def model(model: str, service: TheService, namespace: TheNamespace) -> dict[str, object]:
    """The model that is served, by its name."""
    service.check_model(model)
    return _model(service)


def _model(service: TheService) -> dict[str, object]:
    engine = service.engine
    return {
        "id": service.config.model_id,
        "object": "model",
        "created": CREATED,
        "owned_by": "deltamem",
        "max_model_len": engine.context,
        "name": engine.model_name,
        "fingerprint": engine.fingerprint,
        "recent_messages": engine.recent_messages,
    }
