"""How samples in the plane and 8x8 digits are measured: what their drivers share."""

import functools

import jax
import numpy as np
from sklearn.neural_network import MLPClassifier

from experiments import common
from sinkflow import data, metrics

DIGITS = [str(digit) for digit in range(10)]


def distances(config, task, samples, key):
    """Target samples, W2 to them at every NFE, and floors: fresh draws, last a stratified one."""
    key_real, key_stratified, *keys = jax.random.split(key, 2 + config.num_floors)
    draw, draw_stratified = data.SAMPLERS[task.target], data.STRATIFIED[task.target]
    n = config.num_samples
    real = np.asarray(draw_stratified(key_real, n))
    fresh = [*(draw(key, n) for key in keys), draw_stratified(key_stratified, n)]
    pairs = [(points, real) for points in [*samples.values(), *fresh]]
    bar = functools.partial(common.progress("exact W2"), total=len(pairs))
    values = metrics.wasserstein2_many(pairs, progress=bar)
    return real, dict(zip(samples, values, strict=False)), values[len(samples) :]


class Judge:
    """Compares samples with held-out images, in pixels and in a small classifier's features."""

    def __init__(self, train_images, train_labels, test_images, test_labels, config):
        self.train, self.test, self.config = train_images, test_images, config
        self.random = np.random.default_rng(config.seed)
        self.classifier = MLPClassifier((64,), early_stopping=False, random_state=0, max_iter=300)
        self.classifier.fit(train_images, train_labels)
        self.accuracy = float(self.classifier.score(test_images, test_labels))

    def features(self, images):
        """Activations of the hidden layer."""
        return np.maximum(images @ self.classifier.coefs_[0] + self.classifier.intercepts_[0], 0)

    def shares(self, images):
        """Share of every digit among the classifier's answers."""
        return np.bincount(self.classifier.predict(images), minlength=10) / len(images)

    def __call__(self, images) -> dict[str, float]:
        features = self.features(images), self.features(self.test)
        return {
            "w2": metrics.wasserstein2(images, self.test),
            "frechet": metrics.frechet_distance(*features),
            "class_tv": metrics.total_variation(self.shares(images), np.full(10, 0.1)),
            "nearest": float(np.mean(metrics.nearest(images, self.train)[0])),
        }

    def floor(self) -> dict[str, float]:
        """What real images score: training draws against the test images, mean of draws.

        The nearest training image is measured from the test images instead.
        """
        draws = [self(self.draw()) for _ in range(self.config.num_floors)]
        floor = {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}
        return {**floor, "nearest": float(np.mean(metrics.nearest(self.test, self.train)[0]))}

    def draw(self):
        return self.random.choice(self.train, len(self.test), replace=False)

    def traps(self) -> dict[str, np.ndarray]:
        """What a metric must tell from digits: a Gaussian fitted to them, and shuffled pixels."""
        mean, covariance = self.train.mean(axis=0), np.cov(self.train, rowvar=False)
        gaussian = self.random.multivariate_normal(mean, covariance, len(self.test))
        return {"gaussian": gaussian, "shuffled": self.random.permuted(self.draw(), axis=1)}


def as_images(points):
    return points.reshape(-1, 8, 8)
