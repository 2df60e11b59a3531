"""What the libraries under test need before they are imported."""

import os

from families.timm_shim import make_torchvision_importable

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here downloads; read by huggingface_hub when it is imported
make_torchvision_importable()  # torchmetrics, which Lightning imports, and transformers take it where it is installed
