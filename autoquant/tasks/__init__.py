"""What is the data, and what is a good answer? GLUE, local files, the embedded movie reviews; metrics."""

from autoquant.tasks.data import TaskData, TextData
from autoquant.tasks.load import load_default, load_files, load_glue, load_movies
from autoquant.tasks.metrics import METRICS, score
from autoquant.tasks.task import TASKS, Task

__all__ = ["METRICS", "TASKS", "Task", "TaskData", "TextData", "load_default", "load_files", "load_glue", "load_movies", "score"]
