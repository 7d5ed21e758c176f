"""The SDK's client for the embedded engine, where base models go by short names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tinker


class EmbeddedServiceClient(tinker.ServiceClient):
    """A ServiceClient that knows the directories behind the short names of base models."""

    def __init__(self, names: Mapping[str, str], **arguments: Any) -> None:
        self._posttrain_names = dict(names)
        super().__init__(**arguments)

    def create_sampling_client(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        retry_config: Any = None,
        record_stability_info: bool = False,
    ) -> Any:
        """As in `tinker.ServiceClient`; `base_model` may be a short name."""
        if base_model is not None:
            base_model = self._posttrain_names.get(base_model, base_model)
        return super().create_sampling_client(
            model_path, base_model, retry_config, record_stability_info
        )
