"""Vectors of clips to a map: places on a plane, and clusters. Pure functions of the vectors and a seed."""

import warnings

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize  # zeros stay zeros

FEW = 16  # clips below which there is no neighbourhood to lay out
BATCHES = 10_000  # clips above which clusters are found from batches


def places(vectors: np.ndarray, numbers: np.ndarray, cosines: np.ndarray, seed: int = 0) -> np.ndarray:
    """[n, 2] float32: UMAP (McInnes et al., 2018) of the neighbours that `nearest_of_all` found, from a PCA.

    Of fewer than FEW clips, the PCA itself.
    """
    vectors = normalize(vectors)
    begin = _pca(vectors, 2, seed)
    if len(vectors) < FEW or not begin.any():  # or all are the same
        return begin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed means one thread, and that neighbours were given
        from umap import UMAP  # compiles for seconds

        own = np.arange(len(vectors))[:, None]
        distances = np.clip(1 - cosines, 0, 2).astype(np.float32)
        known = np.hstack([own, numbers]), np.hstack([np.zeros_like(own, np.float32), distances])
        reducer = UMAP(
            n_neighbors=known[0].shape[1], metric="cosine", precomputed_knn=known, init=begin,
            random_state=seed, n_jobs=1, force_approximation_algorithm=True,
        )  # fmt: skip
        return np.asarray(reducer.fit_transform(vectors), np.float32)


def clusters(vectors: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """[n] int64 from 0, the largest cluster first: k-means of the vectors' directions."""
    count = min(count, len(np.unique(vectors, axis=0)))
    kind = KMeans if len(vectors) <= BATCHES else MiniBatchKMeans
    found = kind(count, n_init=3, random_state=seed).fit_predict(normalize(vectors))
    by_size = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    return np.argsort(by_size)[found]


def _pca(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """[n, count] float32, zeros where there are fewer dimensions; scaled as UMAP's own beginnings are, to 10."""
    found = np.zeros((len(vectors), count), np.float32)
    most = min(count, *vectors.shape)
    if len(vectors) and np.ptp(vectors, axis=0).any():
        found[:, :most] = PCA(most, svd_solver="covariance_eigh", random_state=seed).fit_transform(vectors)
    return 10 * found / max(float(np.abs(found).max()), 1e-12)
