"""The API reference from the comments of the .proto files: a page a file.

protoc writes descriptors with the source's comments. In them an element is named by a path of numbers: the number
of the field of the surrounding descriptor, then the index in it.
"""

from __future__ import annotations

import importlib.resources
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc  # type: ignore[import-untyped]

# The files, and what each page is called.
FILES = {
    "autoencoder/v1/autoencoder.proto": "AutoencoderService",
    "autoencoder/v1/model.proto": "The model card",
    "autoencoder/v1/admin.proto": "ModelAdminService",
    "inference/inference.proto": "Open Inference Protocol",
    "inference/model_config.proto": "Open Inference Protocol: configuration",
}

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGE, _SYNTAX = (2,), (12,)
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6  # of a file
_FIELDS, _NESTED, _NESTED_ENUMS, _VALUES, _METHODS = 2, 3, 4, 2, 2  # of a message, an enum, a service
_INDENTED = re.compile(r"^ {2,}\S")

Numbers = tuple[int, ...]


def pages(root: Path = _ROOT) -> dict[str, str]:
    """The text of each page by its name in the site."""
    files = {file.name: file for file in _compile(root / "proto").file}
    places = {name: place for file in files.values() for name, place in _places(file)}
    return {f"{_page(name)}.md": _File(files[name], places).text(title) for name, title in FILES.items()}


def _compile(proto: Path) -> FileDescriptorSet:
    include = importlib.resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors"
        options = ["--include_source_info", "--include_imports", f"--descriptor_set_out={out}"]
        if protoc.main(["protoc", f"-I{proto}", f"-I{include}", *options, *FILES]) != 0:
            raise ValueError(f"{proto}: protoc does not take it")
        return FileDescriptorSet.FromString(out.read_bytes())


def _page(file: str) -> str:
    return f"api/{Path(file).stem}"


def _places(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """The full name of each message and enum of a file that has a page, with the link to it."""
    if file.name in FILES:
        for name in _names(file.message_type, file.enum_type, ""):
            yield f".{file.package}.{name}", f"{Path(file.name).stem}.md#{name}"


def _names(messages: Iterable[DescriptorProto], enums: Iterable[EnumDescriptorProto], within: str) -> Iterator[str]:
    for enum in enums:
        yield within + enum.name
    for message in messages:
        yield within + message.name
        yield from _names(message.nested_type, message.enum_type, f"{within}{message.name}.")


@dataclass(frozen=True)
class _File:
    file: FileDescriptorProto
    places: dict[str, str]

    def text(self, title: str) -> str:
        lines = [f"# {title}", f"`{self.file.name}`, package `{self.file.package}`.", _paragraphs(self.head())]
        for index, service in enumerate(self.file.service):
            lines += self.service(service, (_SERVICES, index))
        for index, message in enumerate(self.file.message_type):
            lines += self.message(message, (_MESSAGES, index), "")
        for index, enum in enumerate(self.file.enum_type):
            lines += self.enum(enum, (_ENUMS, index), "")
        return "\n\n".join(filter(None, lines)) + "\n"

    def head(self) -> str:
        return self.comment(_PACKAGE) or self.comment(_SYNTAX)

    def comment(self, path: Numbers) -> str:
        """What stands before or behind the element, without the slashes."""
        for location in self.file.source_code_info.location:
            if tuple(location.path) == path:
                text = location.leading_comments or location.trailing_comments
                return "\n".join(line.removeprefix(" ").rstrip() for line in text.splitlines()).strip("\n")
        return ""

    def service(self, service: ServiceDescriptorProto, path: Numbers) -> list[str]:
        lines = [f"## {service.name} {{#{service.name}}}", _paragraphs(self.comment(path))]
        for index, method in enumerate(service.method):
            taken = ("stream of " if method.client_streaming else "") + self.type_of(method.input_type)
            given = ("stream of " if method.server_streaming else "") + self.type_of(method.output_type)
            lines += [
                f"### {method.name} {{#{service.name}.{method.name}}}",
                f"{taken} → {given}",
                _paragraphs(self.comment((*path, _METHODS, index))),
            ]
        return lines

    def message(self, message: DescriptorProto, path: Numbers, within: str) -> list[str]:
        if message.options.map_entry:
            return []
        name = within + message.name
        lines = [f"## {name} {{#{name}}}", _paragraphs(self.comment(path))]
        if message.field:
            rows = [self.row(message, field, (*path, _FIELDS, index)) for index, field in enumerate(message.field)]
            lines.append("\n".join(["| field | number | type | |", "|---|---:|---|---|", *rows]))
        for index, inner in enumerate(message.nested_type):
            lines += self.message(inner, (*path, _NESTED, index), f"{name}.")
        for index, enum in enumerate(message.enum_type):
            lines += self.enum(enum, (*path, _NESTED_ENUMS, index), f"{name}.")
        return lines

    def row(self, message: DescriptorProto, field: FieldDescriptorProto, path: Numbers) -> str:
        note = ""
        if field.HasField("oneof_index") and not field.proto3_optional:
            note = f" One of `{message.oneof_decl[field.oneof_index].name}`."
        kind = self.field_type(message, field)
        return f"| `{field.name}` | {field.number} | {kind} | {_cell(self.comment(path))}{note} |"

    def field_type(self, message: DescriptorProto, field: FieldDescriptorProto) -> str:
        for entry in message.nested_type:
            if entry.options.map_entry and field.type_name.endswith(f".{message.name}.{entry.name}"):
                key, value = (self.field_type(entry, inner) for inner in entry.field)
                return f"map of {key} to {value}"
        kind = self.type_of(field.type_name) if field.type_name else f"`{_scalar(field)}`"
        return f"repeated {kind}" if field.label == FieldDescriptorProto.LABEL_REPEATED else kind

    def type_of(self, name: str) -> str:
        short = name.removeprefix(f".{self.file.package}.").removeprefix(".")
        return f"[`{short}`]({self.places[name]})" if name in self.places else f"`{short}`"

    def enum(self, enum: EnumDescriptorProto, path: Numbers, within: str) -> list[str]:
        name = within + enum.name
        rows = [
            f"| `{value.name}` | {value.number} | {_cell(self.comment((*path, _VALUES, index)))} |"
            for index, value in enumerate(enum.value)
        ]
        table = "\n".join(["| value | number | |", "|---|---:|---|", *rows])
        return [f"## {name} {{#{name}}}", _paragraphs(self.comment(path)), table]


def _scalar(field: FieldDescriptorProto) -> str:
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _cell(comment: str) -> str:
    return " ".join(comment.split()).replace("|", "\\|")


def _paragraphs(comment: str) -> str:
    """A comment in Markdown: what is indented is a table laid out by hand, and stays as it is."""
    lines: list[str] = []
    inside = False
    for line in comment.splitlines():
        indented = bool(_INDENTED.match(line)) or (inside and not line.strip())
        if indented != inside:
            lines += ["```text"] if indented else ["```", ""]
            inside = indented
        lines.append(line)
    return "\n".join([*lines, *(["```"] if inside else [])]).replace("\n\n```\n", "\n```\n")
