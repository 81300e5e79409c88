"""Least-squares problems whose answers are known, linear and not."""

import numpy as np


class Problem:
    """Residuals r(u) in several blocks, as the frames of a fit; Jacobians are those of the prediction, −∂r/∂u."""

    def __init__(self, residual, size, *, linear=False, linear_columns=None, blocks=3, jacobian=None):
        self.residual = residual
        self.size = size
        self.linear = linear
        self.linear_columns = linear_columns
        self.blocks = blocks
        self._jacobian = jacobian
        self.calls = []

    def jacobian(self, u):
        if self._jacobian is not None:
            return self._jacobian(u)
        h = 1e-6
        steps = h * np.eye(self.size)
        return -np.array([(self.residual(u + s) - self.residual(u - s)) / (2 * h) for s in steps]).T

    def rows(self, u, *, jacobian):
        self.calls.append(jacobian)
        r = self.residual(u)
        full = self.jacobian(u) if jacobian != "none" else None
        for part in np.array_split(np.arange(len(r)), self.blocks):
            if jacobian == "none":
                yield r[part], None
            elif jacobian == "linear":
                yield r[part], full[part][:, self.linear_columns]
            else:
                yield r[part], full[part]

    def loss(self, u):
        return 0.5 * u @ u + 0.5 * np.sum(self.residual(u) ** 2)


def linear_problem(n=30, p=6, seed=0, **options):
    rng = np.random.default_rng(seed)
    matrix, target = rng.normal(size=(n, p)), 5.0 * rng.normal(size=n)
    return Problem(lambda u: target - matrix @ u, p, jacobian=lambda u: matrix, **options), matrix, target


def valley(strength=30.0):
    """Rosenbrock's valley; loss with the prior: no closed form, a long curved way from (−1.2, 1)."""
    return Problem(
        lambda u: np.array([strength * (u[1] - u[0] ** 2), 5.0 * (1.0 - u[0])]),
        2,
        blocks=2,
        jacobian=lambda u: -np.array([[-2.0 * strength * u[0], strength], [-5.0, 0.0]]),
    )


def partly_linear(seed=0, n=40):
    """ŷ = B v + (a·w)² + c·w: like a short-range energy beside a quadratic electrostatic one."""
    rng = np.random.default_rng(seed)
    b, a, c = rng.normal(size=(n, 3)), rng.normal(size=(n, 2)), rng.normal(size=(n, 2))
    truth = np.array([1.0, -1.5, 0.3, -1.0, 2.0])

    def predict(u):
        return 20.0 * (c @ u[:2] + (a @ u[:2]) ** 2 + b @ u[2:])

    def jacobian(u):
        return 20.0 * np.hstack([c + 2.0 * (a @ u[:2])[:, None] * a, b])

    target = predict(truth) + rng.normal(size=n)
    return Problem(lambda u: target - predict(u), 5, linear_columns=slice(2, 5), jacobian=jacobian), truth


def losses(solution):
    return [it.loss for it in solution.iterations]
