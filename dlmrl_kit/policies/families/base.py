"""The interface of families: how the checkpoints of one architecture are recognised, read and built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, cast

from dlmrl_kit.policies.checkpoint_files import ConfigJson, load_model, load_tokenizer
from dlmrl_kit.policies.layout import Layout, read_files
from dlmrl_kit.policies.options import LoadOptions
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from dlmrl_kit.policies.checkpoint_files import ModelClass


class Family(ABC):
    """Base class of families of checkpoints.

    A family says which ``config.json`` is its own, and which class of transformers computes the same under which
    configuration. Subclasses implement ``recognises``, ``model_class`` and ``model_config``; they override the rest
    where their checkpoints are special. No code of a checkpoint is ever run.
    """

    supported: ClassVar[str]
    """What the family reads, for the error when no family recognises a checkpoint."""

    policy_class: ClassVar[type[TransformersPolicy]] = TransformersPolicy
    """The class of its policies."""

    strict: ClassVar[bool] = True
    """Whether tensors are refused that the model does not have: weights that would be left out without a word."""

    @abstractmethod
    def recognises(self, config: ConfigJson) -> bool:
        """Tells whether a ``config.json`` is of this family."""

    @abstractmethod
    def model_class(self) -> ModelClass:
        """Returns the class of transformers that reads the weights."""

    @abstractmethod
    def model_config(self, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """Returns transformers' configuration for a ``config.json``.

        Raises:
            UserError: a setting for which the model would not compute what the checkpoint's own code does.
        """

    def empty_model(self, config: ConfigJson, options: LoadOptions) -> PreTrainedModel:
        """Builds the model of a ``config.json`` with random weights, on torch's default device.

        Raises:
            UserError: as ``model_config``.
        """
        cls = cast("type[PreTrainedModel]", self.model_class())  # families of Auto classes override this
        return cls(self.model_config(config, options))

    def load(self, folder: str, config: ConfigJson, options: LoadOptions, name: str) -> TransformersPolicy:
        """Loads the policy of a checkpoint.

        Args:
            folder: local, with the checkpoint's files.
            config: its ``config.json``.
            options: how to load it.
            name: the path or hub id as the user wrote it.

        Raises:
            UserError: as ``model_config``, tensors that are missing or left over, or a tokenizer that cannot be loaded.
        """
        layout = self.layout(folder, config)
        mapping = layout.key_mapping() if layout is not None else None
        settings = self.checkpoint_config(folder, config, options)
        model = load_model(
            self.model_class(), folder, options, config=settings, key_mapping=mapping, strict=self.strict
        )
        tokenizer = self.tokenizer(folder, config)
        arguments = options.policy_arguments()
        arguments |= {"eos_id": self.end_id(folder, tokenizer), "layout": layout, "name": name}
        return self.policy_class(model, tokenizer, **arguments)

    def checkpoint_config(self, folder: str, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """Returns the configuration under which a checkpoint is loaded. Default: ``model_config``."""
        return self.model_config(config, options)

    def layout(self, folder: str, config: ConfigJson) -> Layout | None:
        """Returns how the trained model is to be written. Default: with the small files that the checkpoint has."""
        return Layout(read_files(folder))

    def tokenizer(self, folder: str, config: ConfigJson) -> PreTrainedTokenizerBase:
        """Loads the tokenizer. Default: as transformers does."""
        return load_tokenizer(folder, config)

    def end_id(self, folder: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """Returns the id of the end of text, where it is not the tokenizer's. Default: it is."""
        return None
