"""What the adapters of all documented classes share: loading, fingerprint, device, the codec file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from mpcompress.codec import ArithmeticName, Array, CodingParams, FeatureCodec, TensorSpec, Unit, fingerprint_of
from mpcompress.errors import CodecFileError, CorruptBitstreamError, InvalidInputError
from mpcompress.latent_codecs._module import EntropyCodedModule
from mpcompress.neural.arrays import find_device
from mpcompress.neural.codec_file import BITSTREAM_VERSION, NeuralFile
from mpcompress.neural.networks import NETWORKS, Network, load_weights, untrained
from mpcompress.registry import CodecSpec

__all__ = ["Loaded", "NeuralCodec", "load_network"]

T = TypeVar("T")

# Options that every family takes beside its sizes: the file has the rest.
_OPTIONS = ("device", "seed", "token_res")
_BITS_PER_SYMBOL = 64
_BYTES_PER_STRING = 16


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A network ready to code, and what is known about it.

    Args:
        id: codec id.
        network: its row of the table.
        module: in eval mode, on `device`, with tables.
        device: where it runs.
        description: one sentence.
        token_res: grid it was made for.
        settings: what else the family wants to know.
        trained: False for random weights.
        path: of its codec file, if it came from one.
    """

    id: str
    network: Network
    module: EntropyCodedModule
    device: torch.device
    description: str
    token_res: tuple[int, int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = True
    path: Path | None = None


class NeuralCodec(FeatureCodec):
    """Base of the adapters.

    Units of a codec of `arithmetic` "float32" decode for certain only with the arithmetic that made them: the
    distribution of each symbol is computed in float32, and another device or library may round it differently.
    """

    bitstream_version = BITSTREAM_VERSION
    arithmetic: ArithmeticName = "float32"

    def __init__(self, loaded: Loaded) -> None:
        self.id = loaded.id
        self.family = loaded.network.family
        self.description = loaded.description
        self.token_res = loaded.token_res
        self.trained = loaded.trained
        self.device = loaded.device
        self._path = loaded.path
        parts = loaded.network.decoding_parts(loaded.module.state_dict())
        header = [("family", self.family.encode()), ("version", bytes([BITSTREAM_VERSION]))]
        self.fingerprint = fingerprint_of([*header, *parts])

    def codec_file(self) -> bytes | None:
        """The safetensors file; None for untrained codecs."""
        return None if self._path is None else self._path.read_bytes()

    def warm_up(self) -> None:
        """Codes a small item of zeros: compiles the entropy coder, touches the weights."""
        batch, params = self._smallest()
        (coded,) = self.compress([batch], params)
        specs = (TensorSpec(name="h", dtype="float32", shape=batch["h"].shape),)
        context = {name: array for name, array in batch.items() if name != "h"}
        unit = Unit(strings=coded.strings, pstate=coded.pstate, specs=specs, ctx_hash=coded.ctx_hash, context=context)
        self.decompress([unit])

    @abstractmethod
    def _smallest(self) -> tuple[dict[str, Array], CodingParams]:
        """An item that is quickly coded, and its resolved params."""

    def _encode(self, run: Callable[[], T]) -> T:
        """What a documented class refuses after `resolve` are values: the features are to blame."""
        try:
            return run()
        except InvalidInputError as error:
            raise type(error)(error.message, field="tensors[0]") from error

    def _decode(self, run: Callable[[], T]) -> T:
        """What a documented class refuses after `check_unit` no encoder wrote."""
        try:
            return run()
        except InvalidInputError as error:
            raise CorruptBitstreamError(error.message, field="payload") from error

    def _refuse(self, params: CodingParams, *, known: Sequence[str] = ()) -> dict[str, Any]:
        """Refuses parameters that no neural codec has; returns those of the family."""
        for name in ("qp_eighths", "target_bpfp", "target_nmse"):
            if getattr(params, name) is not None:
                raise InvalidInputError(
                    f"codec {self.id} has one rate: it takes no {name}; train one per rate", field=f"params.{name}"
                )
        given = dict(params.family)
        unknown = sorted(given.keys() - set(known))
        if unknown:
            raise InvalidInputError(f"codec {self.id} has no parameter {unknown[0]!r}", field=f"params.{unknown[0]}")
        return given


def check_payload(strings: Sequence[bytes], expected: int, symbols: int) -> None:
    """Refuses a wrong number of streams, and more bytes than so many symbols can take.

    Raises:
        CorruptBitstreamError: either.
    """
    if len(strings) != expected:
        raise CorruptBitstreamError(f"{len(strings)} streams; {expected} expected", field="unit.stream_bytes")
    most = symbols * _BITS_PER_SYMBOL // 8 + _BYTES_PER_STRING * expected
    if sum(map(len, strings)) > most:
        raise CorruptBitstreamError(f"more than {most} bytes for {symbols} symbols", field="payload")


def take_grid(pstate: dict[str, Any], name: str) -> tuple[int, int] | None:
    """Removes (H, W) from a state; None when absent. Raises CorruptBitstreamError."""
    value = pstate.pop(name, None)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(s) is int and s > 0 for s in value):
        raise CorruptBitstreamError(f"{name} is {value!r}, not two sides", field=f"unit.pstate.{name}")
    return value[0], value[1]


def load_network(spec: CodecSpec, *, settings: Sequence[str] = ()) -> Loaded:
    """The network of a specification: from its codec file, or untrained from its options.

    Options: `device` ("cpu", the default; "cuda", "cuda:N", "auto"). Without weights also the sizes of the documented
    class, `token_res` and `seed`.

    Args:
        spec: what to load.
        settings: names of the family's own options, which override those of the file.

    Raises:
        CodecFileError, CodecUnavailableError.
    """
    network = NETWORKS[spec.family]
    options = dict(spec.options)
    device = find_device(options.pop("device", "cpu"))
    own = {name: options.pop(name) for name in settings if name in options}
    if spec.weights is None:
        token_res, seed = options.pop("token_res", None), options.pop("seed", 0)
        if type(seed) is not int:
            raise CodecFileError(f"seed {seed!r} is not an integer", field="options.seed")
        module = untrained(network, options, seed)
        return Loaded(
            id=spec.id,
            network=network,
            module=module.to(device),
            device=device,
            description=f"UNTRAINED {network.class_name}: random weights of seed {seed}, for tests only",
            token_res=None if token_res is None else _grid(token_res),
            settings=own,
            trained=False,
        )
    if options:
        known = ", ".join(("device", *settings))
        raise CodecFileError(
            f"codec {spec.id}: option {sorted(options)[0]!r} is for codecs without weights; known: {known}",
            field=f"options.{sorted(options)[0]}",
        )
    path = spec.weights_path()
    file = NeuralFile.from_bytes(path.read_bytes())
    if file.family != spec.family:
        raise CodecFileError(
            f"the file of codec {spec.id} is of family {file.family}, not {spec.family}", field="family"
        )
    if file.id != spec.id:
        raise CodecFileError(f"the file of codec {spec.id} is that of codec {file.id}", field="id")
    module = network.make(file.sizes)
    load_weights(module, {name: torch.from_numpy(tensor) for name, tensor in file.tensors.items()})
    return Loaded(
        id=spec.id,
        network=network,
        module=module.to(device).eval(),
        device=device,
        description=file.description,
        token_res=file.token_res,
        settings={**file.settings, **own},
        trained=file.trained,
        path=path,
    )


def _grid(value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(s) is int and s > 0 for s in value):
        raise CodecFileError(f"token_res {value!r} is not (H, W)", field="options.token_res")
    return value[0], value[1]
