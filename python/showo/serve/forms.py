"""Forms, which hold pictures as files and all else as texts, become what JSON says elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from showo.serve.errors import ApiError
from showo.serve.schemas import AskedPictures

Form = TypeVar("Form", bound=AskedPictures)
# Lists as OpenAI's client writes them, and as others do; `also`, a list of objects, may also come as one text of JSON.
_LISTS = re.compile(r"(extend|extend_prompts)(?:\[\])?")
_COLUMNS = re.compile(r"also\[\]\[(\w{1,100})\]")
_MAX_FILES, _MAX_FIELDS = 4, 256
_MAX_FIELD_BYTES = 256 * 1024


async def read_form(request: Request, kind: type[Form], files: Collection[str]) -> tuple[Form, dict[str, bytes]]:
    """The fields of a form, and its files, whose names are `files`, the first of which it must have.

    ApiError and RequestValidationError for a form that is not as it should be.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "The body must be a form, sent as Content-Type: multipart/form-data", code="no_form")
    texts: list[tuple[str, str]] = []
    found: dict[str, bytes] = {}
    async with request.form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES) as form:
        for full, value in form.multi_items():
            name = full.removesuffix("[]")
            if isinstance(value, UploadFile) != (name in files):
                raise _wrong(full, f"expected {'a file' if name in files else 'no file'}")
            if not isinstance(value, UploadFile):
                texts.append((full, value))
            elif name in found:
                raise _wrong(name, "is given twice")
            else:
                found[name] = await value.read()
    needed = next(iter(files))
    if needed not in found:
        raise ApiError(400, f"{needed}: is missing", code="missing_required_parameter", param=needed)
    try:
        return kind.model_validate(nested(texts), strict=False), found
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def nested(texts: list[tuple[str, str]]) -> dict[str, Any]:
    """The fields of a form, with the lists among them. ApiError for a field twice, and for a list that is none."""
    fields: dict[str, Any] = {}
    columns: dict[str, list[str]] = {}  # of `also`: the values of each key, in order
    for name, value in texts:
        if listed := _LISTS.fullmatch(name):
            fields.setdefault(listed[1], []).append(value)
        elif column := _COLUMNS.fullmatch(name):
            columns.setdefault(column[1], []).append(value)
        elif name in fields:
            raise _wrong(name, "is given twice")
        else:
            fields[name] = _parsed(name, value) if name == "also" else value
    if columns:
        if "also" in fields:
            raise _wrong("also", "is given twice")
        if len({len(column) for column in columns.values()}) > 1:
            raise _wrong("also", f"not as many of each: {', '.join(columns)}")
        fields["also"] = [dict(zip(columns, values)) for values in zip(*columns.values())]
    return fields


def _parsed(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise _wrong(name, f'expected JSON such as [{{"text": "a blue ring", "weight": 0.5}}]: {error}') from error


def _wrong(name: str, reason: str) -> ApiError:
    name = name[:100]
    return ApiError(400, f"{name}: {reason}", code="invalid_value", param=name)
