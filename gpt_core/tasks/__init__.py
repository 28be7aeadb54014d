"""A GPT adapted to a task, as in GPT-1: classify, compare, choose, mark an answer; its training and its predictions."""
