import numpy as np


def handler(event, context):
    """Solve ``matrix · x = vector``; without a body, a small system with a known answer."""
    body = event["body"] or {"matrix": [[3, 1], [1, 2]], "vector": [9, 8]}
    matrix = np.array(body["matrix"], dtype=float)
    solution = np.linalg.solve(matrix, np.array(body["vector"], dtype=float))
    return {
        "solution": solution.round(9).tolist(),
        "determinant": round(float(np.linalg.det(matrix)), 9),
        "numpy": np.__version__,
    }
