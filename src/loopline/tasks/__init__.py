"""What differs between problems: preprocessing, answers, metrics, drift signals. Numpy only, so that the server shares it."""
