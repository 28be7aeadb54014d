"""The doors, installed as the package `zhizhi`."""
