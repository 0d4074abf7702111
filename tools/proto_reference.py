"""The wire contract as a page: services, messages and enums of the .proto files with their comments.

python tools/proto_reference.py          print the page as Markdown
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from generate_proto import SOURCE, protoc
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
    SourceCodeInfo,
)

# Field numbers of descriptor.proto, of which the paths of comments are made.
_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE, _FILE_SYNTAX = 4, 5, 6, 12
_MESSAGE_FIELD, _MESSAGE_NESTED, _MESSAGE_ENUM = 2, 3, 4
_MEMBER = 2
_TYPES = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}
_REPEATED = FieldDescriptorProto.LABEL_REPEATED

Path_ = tuple[int, ...]


def markdown() -> str:
    """The page."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        protoc(f"--descriptor_set_out={image}", "--include_source_info")
        (file,) = FileDescriptorSet.FromString(image.read_bytes()).file
    return "\n".join(_Page(file).lines())


class _Page:
    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._package = f".{file.package}."
        places = file.source_code_info.location
        self._comments = {tuple(place.path): place.leading_comments for place in places}
        # The rules at the top of the file stand before its syntax.
        self._top = [part for place in places if place.path == [_FILE_SYNTAX] for part in _parts(place)]

    def lines(self) -> Iterator[str]:
        yield "# The wire contract\n"
        yield f"Package `{self._file.package}`: services, messages and enums of `{SOURCE.name}` with its comments.\n"
        yield "```text"
        yield "\n".join(self._top)
        yield "```\n"
        for index, service in enumerate(self._file.service):
            yield from self._service(service, (_FILE_SERVICE, index))
        for index, message in enumerate(self._file.message_type):
            yield from self._message(message, (_FILE_MESSAGE, index), "")
        for index, enum in enumerate(self._file.enum_type):
            yield from self._enum(enum, (_FILE_ENUM, index), "")

    def _service(self, service: ServiceDescriptorProto, path: Path_) -> Iterator[str]:
        yield from self._head("service", service.name, path)
        rows = [
            (
                f"`{method.name}`",
                self._link(method.input_type, "stream " * method.client_streaming),
                self._link(method.output_type, "stream " * method.server_streaming),
                self._comment((*path, _MEMBER, index)),
            )
            for index, method in enumerate(service.method)
        ]
        yield from _table(("call", "request", "response", ""), rows)

    def _message(self, message: DescriptorProto, path: Path_, outer: str) -> Iterator[str]:
        name = outer + message.name
        yield from self._head("message", name, path)
        rows = [
            (
                str(field.number),
                f"`{field.name}`",
                self._field_type(field),
                self._one_of(message, field) + self._comment((*path, _MESSAGE_FIELD, index)),
            )
            for index, field in enumerate(message.field)
        ]
        yield from _table(("", "field", "type", ""), rows)
        for index, nested in enumerate(message.nested_type):
            yield from self._message(nested, (*path, _MESSAGE_NESTED, index), f"{name}.")
        for index, enum in enumerate(message.enum_type):
            yield from self._enum(enum, (*path, _MESSAGE_ENUM, index), f"{name}.")

    def _enum(self, enum: EnumDescriptorProto, path: Path_, outer: str) -> Iterator[str]:
        yield from self._head("enum", outer + enum.name, path)
        values = enumerate(enum.value)
        rows = [(str(value.number), f"`{value.name}`", self._comment((*path, _MEMBER, i))) for i, value in values]
        yield from _table(("", "value", ""), rows)

    def _head(self, kind: str, name: str, path: Path_) -> Iterator[str]:
        yield f"## {kind} {name} {{ #{_anchor(name)} }}\n"
        comment = self._comment(path)
        if comment:
            yield f"{comment}\n"

    def _field_type(self, field: FieldDescriptorProto) -> str:
        before = "repeated " if field.label == _REPEATED else "optional " if field.proto3_optional else ""
        return self._link(field.type_name, before) if field.type_name else f"{before}{_TYPES[field.type]}"

    def _one_of(self, message: DescriptorProto, field: FieldDescriptorProto) -> str:
        if field.proto3_optional or not field.HasField("oneof_index"):
            return ""
        return f"*One of `{message.oneof_decl[field.oneof_index].name}`.* "

    def _link(self, type_name: str, before: str) -> str:
        if not type_name.startswith(self._package):
            return f"{before}`{type_name[1:]}`"
        name = type_name.removeprefix(self._package)
        return f"{before}[{name}](#{_anchor(name)})"

    def _comment(self, path: Path_) -> str:
        """A comment as one paragraph of Markdown."""
        return " ".join(self._comments.get(path, "").split()).replace("|", "\\|").replace("<", "&lt;")


def _parts(place: SourceCodeInfo.Location) -> list[str]:
    parts = [*place.leading_detached_comments, place.leading_comments]
    return [line.removeprefix(" ") for part in parts for line in part.splitlines()]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield f"| {' | '.join(titles)} |"
        yield f"|{'---|' * len(titles)}"
        yield from (f"| {' | '.join(row)} |" for row in rows)
        yield ""


def _anchor(name: str) -> str:
    return name.lower().replace(".", "-")


if __name__ == "__main__":
    sys.stdout.write(markdown())
