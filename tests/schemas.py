"""Random JSON schemas: what people write, and a little worse."""

import random

Schema = dict[str, object]
PATTERNS = ["^[a-f]{2,5}$", r"^\d{4}-\d\d$", "^(yes|no)+!?$", "x", r"^[^@ ]+@[a-z]+\.(com|org)$"]


def random_object_schema(rng: random.Random) -> Schema:
    """Of an object that must have one property of a random schema, and may have another."""
    defs: Schema = {}
    properties = {"it": random_schema(rng, defs), "more": random_schema(rng, defs, depth=1)}
    schema: Schema = {"type": "object", "properties": properties, "required": ["it"]}
    return {**schema, "$defs": defs} if defs else schema


def random_schema(rng: random.Random, defs: Schema, *, depth: int = 2) -> Schema:
    """Nested objects, bounded arrays, enums, numbers, strings with patterns and lengths, unions, references.

    Args:
        rng: chooses.
        defs: takes the schemas that are referred to; they belong to the root, under "$defs".
        depth: how many schemas may stand inside each other.
    """
    kinds = ["integer", "number", "string", "pattern", "length", "enum", "const", "boolean", "null"]
    kind = rng.choice(kinds + ["object", "object", "array", "union", "reference"] * (depth > 0))
    low = rng.randint(-50, 50)
    inner = [random_schema(rng, defs, depth=depth - 1) for _ in range(rng.randint(1, 3))] if depth else []
    properties = dict(zip(rng.sample(["a", "né", 'q"', "long name"], len(inner)), inner, strict=True))
    if kind == "reference":
        defs[name := f"part {len(defs)}"] = inner[0]
        return {"$ref": f"#/$defs/{name.replace(' ', '%20')}"}
    made: dict[str, Schema] = {
        "integer": {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 200)},
        "number": {"type": "number", "minimum": low, "exclusiveMaximum": low + 10.5},
        "string": {"type": "string"},
        "pattern": {"type": "string", "pattern": rng.choice(PATTERNS)},
        "length": {"type": "string", "minLength": rng.randint(0, 4), "maxLength": rng.randint(4, 9)},
        "enum": {"enum": rng.sample(["red", "grün", 7, 2.5, None, True, "a/b\\c\n"], rng.randint(1, 4))},
        "const": {"const": rng.choice(["fixed", 0, [1, "b"], {"k": None}])},
        "boolean": {"type": "boolean"},
        "null": {"type": "null"},
        "object": {
            "type": "object",
            "properties": properties,
            "required": rng.sample(sorted(properties), rng.randint(0, len(properties))),
        },
        "array": {"type": "array", "items": (inner or [{}])[0], "minItems": rng.randint(0, 2), "maxItems": 3},
        "union": {"anyOf": inner},
    }
    return made[kind]
