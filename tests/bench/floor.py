"""The floor under every HTTP figure: FastAPI on the same uvicorn, reading the body raw and doing nothing."""

from fastapi import FastAPI, Request
from starlette.responses import Response

app = FastAPI()


@app.post("/")
async def nothing(request: Request) -> Response:
    """Read the body and answer with a constant."""
    await request.body()
    return Response(b"{}", media_type="application/json")
