"""Search for better settings of a model: `loopline tune`.

`space` knows which settings may change. `trial` runs one training. `workers` runs trials in processes or on Ray. `search` proposes
trials by generations, so that neither the number of workers nor their timing decides what is tried. `comparison` compares the best
trial with params.yaml on the test split. `search_report` and `search_pictures` write what was found, `mlflow_runs` records it.
"""
