"""What is in a checkpoint, each tensor's file compared with its declaration; no weight is read."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from model.checkpoint import files
from model.checkpoint.source import open_checkpoint
from model.params import Tensor
from model.tokenizer import Tokenizer
from schemas.error import SetupError


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """The findings, of JSON-ready types.

    Attributes:
      url: where it lies, with no secret in it.
      kind: ``release``, ``store`` or another layout.
      weights: what its matrices are stored as: ``int8``, ``int4`` or ``bf16``.
      identity: hash over names, sizes and ends of the files.
      config: the model's shape by the keys of ``config.json``.
      parameters: of the model that the config describes.
      active_parameters: those that one token's forward pass multiplies with.
      nbytes: size of the tensor files.
      tensors: how many the model has.
      present: how many of them have a file that is as declared.
      missing: names of those without a file.
      faults: one sentence for each whose file is not as declared.
      unexpected: tensor files that belong to no tensor of the model.
      dtypes: numbers stored, by dtype, in the files that are as declared.
      scale_groups: G by parameter, of the quantised ones.
      tokenizer: ``vocab_size`` and ``identity`` of the tokenizer beside it, or None.
      tokenizer_fault: why that tokenizer cannot belong to the model, or None.
    """

    url: str
    kind: str
    weights: str
    identity: str
    config: Mapping[str, Any]
    parameters: int
    active_parameters: int
    nbytes: int
    tensors: int
    present: int
    missing: list[str]
    faults: list[str]
    unexpected: list[str]
    dtypes: Mapping[str, int]
    scale_groups: Mapping[str, int]
    tokenizer: Mapping[str, Any] | None
    tokenizer_fault: str | None

    @property
    def ok(self) -> bool:
        """Whether all is as it should be; without a tokenizer it can be used by token ids only."""
        return not (self.missing or self.faults or self.unexpected or self.tokenizer_fault)

    def to_dict(self) -> dict[str, Any]:
        """All of it for ``json.dumps``, ``ok`` included."""
        return {**dataclasses.asdict(self), "ok": self.ok}


def inspect_checkpoint(url: str) -> CheckpointReport:
    """Opens a checkpoint and compares every file with its declaration, several at a time.

    Raises:
      SetupError: there is no checkpoint, or its config cannot be read. Faults of single tensors
        and of the tokenizer are in the report.
    """
    checkpoint = open_checkpoint(url)
    missing, order = checkpoint.missing(), checkpoint.tensors()

    def check(tensor: Tensor) -> Mapping[str, int] | str:
        try:
            return checkpoint.check(tensor)
        except SetupError as fault:
            return str(fault)

    absent = set(missing)
    found = files.in_parallel(check, [t for t in order if checkpoint.name_of(t) not in absent])
    dtypes: collections.Counter[str] = collections.Counter()
    for counts in found:
        if not isinstance(counts, str):
            dtypes.update(counts)
    faults = [fault for fault in found if isinstance(fault, str)]
    tokenizer, tokenizer_fault = None, None
    if checkpoint.tokenizer_url:
        try:
            loaded = Tokenizer.load(checkpoint.tokenizer_url)
            tokenizer = {"vocab_size": loaded.vocab_size, "identity": loaded.identity}
            loaded.check_against(checkpoint.config)
        except SetupError as fault:
            tokenizer_fault = str(fault)
    return CheckpointReport(
        url=checkpoint.url,
        kind=checkpoint.kind,
        weights=checkpoint.weights,
        identity=checkpoint.identity(),
        config=dataclasses.asdict(checkpoint.config),
        parameters=checkpoint.config.num_params,
        active_parameters=checkpoint.config.active_params,
        nbytes=checkpoint.nbytes,
        tensors=len(order),
        present=len(found) - len(faults),
        missing=missing,
        faults=faults,
        unexpected=checkpoint.unexpected(),
        dtypes=dict(dtypes),
        scale_groups={t.param.name: t.param.groups for t in order if t.param.quantized},
        tokenizer=tokenizer,
        tokenizer_fault=tokenizer_fault,
    )
