"""Features by the encoder of an autoencoder: the mean of q(z | x), flattened.

Source: Rombach et al. (2022), arXiv 2112.10752, section 3.1 (autoencoders of images).
"""

from typing import Any, ClassVar

import numpy as np

from selfloop.component import Count, component
from selfloop.embed.features import Features, model_space
from selfloop.embed.network import Device, Network, placed, pretrained
from selfloop.embed.store import contents
from selfloop.formats import expanded
from selfloop.measure import Measure
from selfloop.protocols import Work


@component
class VaeEmbedding:
    """`vae`: the mean of the encoder of a diffusers AutoencoderKL, c h w features of an image, as the encoder scales them.

    path: a folder or hub name with safetensors weights ($VARIABLE is replaced); `batch` images at a time on `device`. Images
    are (n, C, H, W) with the channels of the autoencoder, or grey, which is repeated.
    """

    path: str
    batch: Count = 64
    device: Device = "auto"

    learns: ClassVar[frozenset[str]] = frozenset()

    def stamp(self) -> str:
        """SHA-256 of the weights, if they are a folder."""
        return contents("path", self.path)

    def fitted(self, real: Measure, work: Work | None = None) -> Features:
        """The encoder with its weights. Raises what reading them raises, with the remedy."""
        import torch

        device = placed(self.device)
        vae = pretrained("diffusers", "AutoencoderKL", expanded("path", self.path)).to(device)
        channels = vae.config["in_channels"]

        def means(block: Any) -> Any:
            x = torch.from_numpy(np.array(model_space(block))).to(device)
            if x.ndim != 4 or x.shape[1] not in (1, channels):
                raise ValueError(
                    f"vae looks at images (n, {channels} or 1, H, W), got {tuple(x.shape)}; latents are features already: "
                    "use features: pixels"
                )
            return vae.encode(x.expand(-1, channels, -1, -1)).latent_dist.mean.flatten(1)

        return Network("vae", self.batch, means)
