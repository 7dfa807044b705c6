"""The interface of families: how the checkpoints of one architecture are recognised, read and built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, cast

from dlmrl_kit.policies.checkpoint_files import ConfigJson, check_files, load_model, load_tokenizer
from dlmrl_kit.policies.layout import Layout, read_files
from dlmrl_kit.policies.model_files import foreign
from dlmrl_kit.policies.options import LoadOptions
from dlmrl_kit.policies.special_ids import check_agreement, check_ids
from dlmrl_kit.policies.text_bounds import distinct, listed_ends
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

    unused: ClassVar[tuple[str, ...]] = ()
    """Regular expressions of names of tensors that may be left out; others that the model does not have are refused."""

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
            UserError: as ``model_config``, damaged files, tensors that are missing, left over or not finite, a
                tokenizer that cannot be loaded, or special tokens that are none or contradict each other.
        """
        check_files(folder)
        with foreign(f"{folder}/config.json describes no model that can be built"):
            settings = self.checkpoint_config(folder, config, options)
        check_ids(folder, config, settings.get_text_config().vocab_size)
        layout = self.layout(folder, config)
        model = load_model(self.model_class(), folder, options, config=settings, layout=layout, unused=self.unused)
        tokenizer = self.tokenizer(folder, config)
        check_agreement(folder, config, tokenizer, options.mask_id)
        arguments = options.policy_arguments()
        arguments |= {"listed_ends": self.ends(folder, config, tokenizer), "layout": layout, "name": name}
        arguments["forbidden_ids"] = (*options.forbidden_ids, *self.forbidden(tokenizer))
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

    def forbidden(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Returns ids that are never committed, besides the mask, padding and rows without a token. Default: none."""
        return ()

    def ends(self, folder: str, config: ConfigJson, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Returns the ids that end a text; the first fills what a finished completion leaves open.

        Default: the tokenizer's end of text, then what the checkpoint's files list. That the chat template's end of a
        turn is one too is not to be said here.
        """
        return distinct([tokenizer.eos_token_id, *listed_ends(folder, config)])
