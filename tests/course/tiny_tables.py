"""The tables of the tiny course's course.toml that tests take out or double."""

TABLE_TWO = """\
[[chapter]]
file = "01_two"
part = "I"
asks = "who uses it?"
level = "steady"
needs = ["one"]
"""
