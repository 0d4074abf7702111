"""pstate as a plain dictionary and as a typed message.

A dictionary has one key per field that is set: a TokenGrid is a tuple (height, width), repeated numbers are a list, an
enum its name in lower case without the prefix, a plug-in's Any `{"type_url": str, "value": bytes}`.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from mpcompress_proto.errors import WireError
from mpcompress_proto.v1 import compression_pb2 as pb

KINDS = tuple(field.name for field in pb.CodedUnitHeader.DESCRIPTOR.oneofs_by_name["pstate"].fields)


def set_pstate(header: pb.CodedUnitHeader, kind: str, state: dict[str, Any]) -> None:
    """Writes `state` into the member `kind` of the header's oneof. Raises WireError for keys it does not have."""
    if kind not in KINDS:
        raise WireError(f"unknown kind of pstate {kind!r}; known: {', '.join(KINDS)}", field="unit.pstate")
    message = getattr(header, kind)
    message.SetInParent()
    fill(message, state, f"unit.{kind}")


def get_pstate(header: pb.CodedUnitHeader) -> tuple[str, dict[str, Any]]:
    """Kind and dictionary of a header's pstate. Raises WireError when there is none."""
    kind = header.WhichOneof("pstate")
    if kind is None:
        raise WireError("the unit has no pstate", field="unit.pstate")
    return kind, to_dict(getattr(header, kind))


def fill(message: Message, values: dict[str, Any], field: str) -> None:
    """Sets the fields of `message` from a dictionary. Raises WireError for unknown keys and values of a wrong type."""
    fields = message.DESCRIPTOR.fields_by_name
    for key, value in values.items():
        if key not in fields:
            raise WireError(f"unknown key {key!r}; known: {', '.join(sorted(fields))}", field=f"{field}.{key}")
        descriptor = fields[key]
        try:
            if descriptor.message_type is not None:
                grid = getattr(message, key)
                grid.height, grid.width = value
            elif descriptor.is_repeated:
                getattr(message, key).extend(value)
            elif descriptor.enum_type is not None:
                setattr(
                    message,
                    key,
                    descriptor.enum_type.values_by_name[_prefix(descriptor.enum_type) + value.upper()].number,
                )
            else:
                setattr(message, key, value)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise WireError(f"{key}: {error}", field=f"{field}.{key}") from error


def to_dict(message: Message) -> dict[str, Any]:
    """The fields of `message` as a dictionary; fields without a value are left out."""
    if isinstance(message, AnyMessage):
        return {"type_url": message.type_url, "value": message.value}
    values: dict[str, Any] = {}
    for descriptor in message.DESCRIPTOR.fields:
        value = getattr(message, descriptor.name)
        if descriptor.is_repeated:
            if value:
                values[descriptor.name] = list(value)
        elif descriptor.has_presence and not message.HasField(descriptor.name):
            continue
        elif descriptor.message_type is not None:
            values[descriptor.name] = (value.height, value.width)
        elif descriptor.enum_type is not None:
            known = descriptor.enum_type.values_by_number.get(value)
            values[descriptor.name] = (
                known.name.removeprefix(_prefix(descriptor.enum_type)).lower() if known else str(value)
            )
        else:
            values[descriptor.name] = value
    return values


def _prefix(enum: Any) -> str:
    """PICTURE_FORMAT_ for PictureFormat: the part of the value names before UNSPECIFIED."""
    return str(enum.values_by_number[0].name).removesuffix("UNSPECIFIED")
