"""Generative modelling by the Wasserstein gradient flow of the Sinkhorn divergence, in JAX."""

from sinkflow import assignment as assignment
from sinkflow import checkpoint as checkpoint
from sinkflow import costs as costs
from sinkflow import data as data
from sinkflow import epsilon as epsilon
from sinkflow import flow as flow
from sinkflow import general as general
from sinkflow import generator as generator
from sinkflow import generators as generators
from sinkflow import interpolants as interpolants
from sinkflow import metrics as metrics
from sinkflow import models as models
from sinkflow import ode as ode
from sinkflow import opponents as opponents
from sinkflow import parallel as parallel
from sinkflow import plotting as plotting
from sinkflow import pool as pool
from sinkflow import sampling as sampling
from sinkflow import scaling as scaling
from sinkflow import train as train
from sinkflow.certificate import SinkhornOutput as SinkhornOutput
from sinkflow.divergence import barycentric_map as barycentric_map
from sinkflow.divergence import sinkhorn_divergence as sinkhorn_divergence
from sinkflow.divergence import sinkhorn_velocity as sinkhorn_velocity
from sinkflow.epsilon import epsilon_for_entropy as epsilon_for_entropy
from sinkflow.epsilon import epsilon_for_neighbours as epsilon_for_neighbours
from sinkflow.limits import Limits as Limits
from sinkflow.sinkhorn import sinkhorn as sinkhorn
from sinkflow.sinkhorn import sinkhorn_self as sinkhorn_self

__version__ = "0.1.0"
