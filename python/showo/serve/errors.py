"""Errors as OpenAI's clients know them: a status, and JSON with `error`: message, type, param, code."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from showo.engine.batching import (
    DeadlineError,
    EngineClosedError,
    EngineError,
    EngineFailedError,
    EngineStuckError,
    QueueFullError,
    RequestCancelledError,
)
from showo.errors import NotFiniteError, UserError, shortened

_log = logging.getLogger(__name__)

INVALID, BUSY, SERVER = "invalid_request_error", "rate_limit_error", "server_error"
CLOSE = {"Connection": "close"}  # the server closes the connection, of which the client must know
RETRY_SECONDS = 1  # what a client that finds the server busy is told to wait


class ApiError(HTTPException):
    """A request that is answered by an error.

    kind: INVALID, BUSY or SERVER. code: a name for programs. param: the field that is wrong, where it is one.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        message, param = shortened(message), None if param is None else shortened(param)
        super().__init__(status, message, headers)
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status_code, self.headers)


def busy(message: str, code: str, status: int = 503) -> ApiError:
    """An error that goes away by itself."""
    kind = BUSY if status == 429 else SERVER
    return ApiError(status, message, code=code, kind=kind, headers={"Retry-After": str(RETRY_SECONDS)})


def api_error(error: Exception) -> ApiError:
    """What a client is told of an exception; of a bug no more than that there is one, which the log describes."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return invalid(error.errors())
    if isinstance(error, HTTPException):
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
        return ApiError(error.status_code, str(error.detail), code=code, headers=error.headers)
    if isinstance(error, QueueFullError):
        return busy(str(error), "queue_full", 429)
    if isinstance(error, EngineClosedError):
        return busy(str(error), "stopping")
    if isinstance(error, EngineStuckError):
        return busy(str(error), "engine_stuck")
    if isinstance(error, EngineFailedError):  # no Retry-After: this server does not come back
        return ApiError(503, str(error), code="engine_dead", kind=SERVER)
    if isinstance(error, DeadlineError):
        return ApiError(504, str(error), code="deadline", kind=SERVER)
    if isinstance(error, RequestCancelledError):
        return ApiError(499, str(error), code="cancelled")
    if isinstance(error, (EngineError, NotFiniteError)):
        return ApiError(500, str(error), code="engine_failed", kind=SERVER)
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    message = "a bug in the server; its log says more"
    return ApiError(500, message, code="internal_error", kind=SERVER, headers=CLOSE)


def invalid(problems: Sequence[Any]) -> ApiError:
    """The first thing that pydantic found wrong."""
    first = problems[0]
    path = [part for part in first["loc"] if part != "body"]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".") or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: {param}", code="unknown_parameter", param=param)
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"The body is no valid JSON: {reason}", code="invalid_json")
    if param is None and first["type"] in ("missing", "model_attributes_type"):
        return ApiError(400, "The body must be a JSON object, sent as Content-Type: application/json", code="no_json")
    if first["type"] == "value_error":  # of this package's own checks, which name the field
        message = str(first["ctx"]["error"])
        return ApiError(400, message, code="invalid_value", param=message.partition(":")[0])
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return ApiError(400, f"{param}: {first['msg']}", code=code, param=param)


def answer_errors(app: FastAPI) -> None:
    """Makes every error of `app` one of the shape above."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return api_error(error).response()

    for kind in (HTTPException, RequestValidationError, UserError, EngineError, Exception):
        app.add_exception_handler(kind, answer)
