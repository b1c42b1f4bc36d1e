"""A published Cosmos-Predict2.5 as the start of stage 2: its DiT, and its `crossattn_proj` as the connector.

In: a safetensors file or a diffusers folder (formats/cosmos.py; the official .pt after `convert`). Out: connector and
DiT, with the run's kind of attention, in float32 to be trained whole, or in the file's own precision for LoRA.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.dit.published import open_cosmos
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.dit.cosmos import PackedCosmos
    from duogen_core.training.stage2 import Stage2Config


def start_from(base: Path, config: Stage2Config, layers: int, hidden: int) -> tuple[PackedCosmos, Connector]:
    """layers, hidden: of the MLLM. A connector that reads the last layer alone begins anew."""
    file = open_cosmos(base)
    dit = file.load_dit(None if config.lora else torch.float32).train()
    if config.attention == "frame_causal" and dit.config.clean_timestep < 0:
        raise DuoGenError(
            f"{base} is a pre-trained Cosmos, whose finished pictures share the target's timestep; frame_causal needs "
            "one of their own. Take the post-trained one, or attention=full."
        )
    dit.register_to_config(attention=config.attention, references=config.references)
    width = dit.config.text_embed_dim
    connector = Connector(ConnectorConfig(layers, hidden, width, config.connector_layers, config.drop))
    if config.connector_layers == "all":
        connector.load_state_dict(file.load_connector((layers, hidden), torch.float32).state_dict())
    return dit, connector
