"""Networks, as Linen modules: for vectors, images, latent points, and classifiers of images."""

from sinkflow.nets.classifier import Classifier, MixerClassifier
from sinkflow.nets.flat import Network, flattened, on_vectors
from sinkflow.nets.generators import ConvGenerator, GeneratorMLP
from sinkflow.nets.mlp import FlowMapMLP, TimePredictorMLP, VelocityMLP
from sinkflow.nets.unet import CIFAR_UNET, ConvTimePredictor, UNet

__all__ = [
    "CIFAR_UNET",
    "Classifier",
    "ConvGenerator",
    "ConvTimePredictor",
    "FlowMapMLP",
    "GeneratorMLP",
    "MixerClassifier",
    "Network",
    "TimePredictorMLP",
    "UNet",
    "VelocityMLP",
    "flattened",
    "on_vectors",
]
