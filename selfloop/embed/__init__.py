"""Features: what metrics and curators compare instead of pixels.

    phi: points (n, *event) -> R^(n x d)

pixels       x / 127.5 - 1, flattened; vectors as they are
classifier   the last layer but one of a small network that was trained to name the classes of the same real data
inception    the 2048 pooled features of Inception-v3 with the weights of 2015: FID and KID as published
dinov2       the class token of a DINOv2 transformer: FD-DINOv2
clip         the projected image embedding of CLIP
vae          the mean of the encoder of an autoencoder
module       any network of one's own
pca          the principal components of other features
file         rows of a file that was made before
cached       other features, kept in a folder

An embedding is a component, frozen; `fitted` gives the features themselves: a classifier is trained for them, published
networks are read. `embedded` gives those of all rows of a data set. Images are uint8; latents, float32, are embedded as they
are by pixels and classifier, and must be decoded for networks that look at images. torch is imported by what needs it alone.
"""

from selfloop.embed.cached import CachedEmbedding
from selfloop.embed.classifier import ClassifierEmbedding, ClassifierFeatures
from selfloop.embed.features import Embedding, Features, Floats, blocks, model_space, sound
from selfloop.embed.file import FileEmbedding
from selfloop.embed.module import ModuleEmbedding
from selfloop.embed.moments import FeatureMoments
from selfloop.embed.network import Device, Network
from selfloop.embed.pca import PcaEmbedding
from selfloop.embed.pixels import PixelEmbedding, Pixels
from selfloop.embed.published import Clip, Dinov2, Inception
from selfloop.embed.store import embedded, embedded_by, fingerprint
from selfloop.embed.vae import VaeEmbedding

__all__ = [
    "CachedEmbedding",
    "ClassifierEmbedding",
    "ClassifierFeatures",
    "Clip",
    "Device",
    "Dinov2",
    "Embedding",
    "FeatureMoments",
    "Features",
    "FileEmbedding",
    "Floats",
    "Inception",
    "ModuleEmbedding",
    "Network",
    "PcaEmbedding",
    "PixelEmbedding",
    "Pixels",
    "VaeEmbedding",
    "blocks",
    "embedded",
    "embedded_by",
    "fingerprint",
    "model_space",
    "sound",
]
