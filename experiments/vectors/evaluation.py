"""How samples in the plane and 8x8 digits are measured: what their drivers share."""

import functools

import jax
import numpy as np
from sklearn.neural_network import MLPClassifier

from experiments.harness import cli
from sinkflow import data, metrics
from sinkflow.metrics import judge

DIGITS = [str(digit) for digit in range(10)]


def distances(task, samples, key, *, num_samples: int, num_floors: int):
    """Target samples, W2 to them at every NFE, and floors: fresh draws, last a stratified one."""
    key_real, key_stratified, *keys = jax.random.split(key, 2 + num_floors)
    draw, draw_stratified = data.SAMPLERS[task.target], data.STRATIFIED[task.target]
    real = np.asarray(draw_stratified(key_real, num_samples))
    fresh = [draw(key, num_samples) for key in keys]
    fresh.append(draw_stratified(key_stratified, num_samples))
    pairs = [(points, real) for points in [*samples.values(), *fresh]]
    bar = functools.partial(cli.progress("exact W2"), total=len(pairs))
    values = metrics.wasserstein2_many(pairs, progress=bar)
    return real, dict(zip(samples, values, strict=False)), values[len(samples) :]


def digit_scores(real: judge.Seen, generated: judge.Seen) -> dict[str, float]:
    """Exact W2 of pixels, Fréchet distance of features, classes against the uniform ones."""
    return {
        "w2": metrics.wasserstein2(generated.vectors, real.vectors),
        "frechet": metrics.frechet_distance(generated.features, real.features),
        "class_tv": metrics.total_variation(judge.shares(generated.classes), np.full(10, 0.1)),
    }


class Judge(judge.Judge):
    """Compares samples with held-out images, in pixels and in a small classifier's features."""

    def __init__(self, train_images, train_labels, test_images, test_labels, config):
        self.config, self.random = config, np.random.default_rng(config.seed)
        self.classifier = MLPClassifier((64,), early_stopping=False, random_state=0, max_iter=300)
        self.classifier.fit(train_images, train_labels)
        self.accuracy = float(self.classifier.score(test_images, test_labels))
        super().__init__(train_images, test_images, self.look, scores_fn=digit_scores)

    def look(self, images):
        """Activations of the hidden layer, and classes."""
        hidden = images @ self.classifier.coefs_[0] + self.classifier.intercepts_[0]
        return np.maximum(hidden, 0), self.classifier.predict(images)

    def shares(self, images):
        """Share of every digit among the classifier's answers."""
        return judge.shares(self.look(images)[1])

    def memory(self, distances):
        """The distance alone: so few images do not tell who memorised."""
        return {"nearest": float(np.mean(distances))}

    def draw(self):
        return self.random.choice(self.train, len(self.test), replace=False)

    def floor(self, draws=None) -> dict[str, float]:
        """What real images score, mean of ``num_floors`` draws."""
        return super().floor(draws or [self.draw() for _ in range(self.config.num_floors)])

    def traps(self) -> dict[str, np.ndarray]:
        """What a metric must tell from digits: a Gaussian fitted to them, and shuffled pixels."""
        gaussian = judge.fitted_gaussian(self.random, self.train, len(self.test))
        return {"gaussian": gaussian, "shuffled": judge.shuffled(self.random, self.draw())}


def as_images(points):
    return points.reshape(-1, 8, 8)
