"""Writes ONNX files, and reads the metadata of one, with nothing but the standard library.

An ONNX file is one protobuf message. The few messages that our models need are written here by field number (the
numbers are those of onnx.proto3), so that neither a package nor a compiler is needed to make a model. The bytes depend
only on the arguments: the same model is the same file everywhere, which is what lets fetch.py pin it by hash.
"""

import struct

FLOAT, INT64 = 1, 7
IR_VERSION = 8
OPSET = 17


def _varint(number):
    number &= (1 << 64) - 1  # negative integers are written as their two's complement in 64 bits
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _int(field, number):
    return _varint(field << 3) + _varint(number)


def _bytes(field, data):
    if isinstance(data, str):
        data = data.encode()
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def tensor(name, dims, data, dtype=FLOAT):
    """An initializer: `data` holds the elements, little-endian, row-major."""
    count = 1
    for dim in dims:
        count *= dim
    size = 4 if dtype == FLOAT else 8
    if len(data) != count * size:
        raise ValueError(f"{name}: {len(data)} bytes for dimensions {list(dims)}, want {count * size}")
    return b"".join(_int(1, dim) for dim in dims) + _int(2, dtype) + _bytes(8, name) + _bytes(9, data)


def floats(name, dims, values):
    """An initializer of float32 from an iterable of numbers."""
    values = list(values)
    return tensor(name, dims, struct.pack(f"<{len(values)}f", *values))


def int64s(name, dims, values):
    """An initializer of int64 from an iterable of integers."""
    values = list(values)
    return tensor(name, dims, struct.pack(f"<{len(values)}q", *values), INT64)


def node(operator, inputs, outputs, **attributes):
    """One operator; attributes are integers, lists of integers or text."""
    message = b"".join(_bytes(1, name) for name in inputs) + b"".join(_bytes(2, name) for name in outputs)
    message += _bytes(3, outputs[0]) + _bytes(4, operator)
    for name, value in sorted(attributes.items()):
        attribute = _bytes(1, name)
        if isinstance(value, int):
            attribute += _int(3, value) + _int(20, 2)
        elif isinstance(value, str):
            attribute += _bytes(4, value) + _int(20, 3)
        else:
            attribute += b"".join(_int(8, number) for number in value) + _int(20, 7)
        message += _bytes(5, attribute)
    return message


def value(name, dims, dtype=FLOAT):
    """An input or output; a dimension is a number, or a name when it is chosen at run time."""
    shape = b"".join(_bytes(1, _bytes(2, dim) if isinstance(dim, str) else _int(1, dim)) for dim in dims)
    return _bytes(1, name) + _bytes(2, _bytes(1, _int(1, dtype) + _bytes(2, shape)))


def model(name, nodes, inputs, outputs, initializers):
    """The whole file, from messages that the functions above made."""
    graph = b"".join(_bytes(1, message) for message in nodes) + _bytes(2, name)
    graph += b"".join(_bytes(5, message) for message in initializers)
    graph += b"".join(_bytes(11, message) for message in inputs)
    graph += b"".join(_bytes(12, message) for message in outputs)
    return _int(1, IR_VERSION) + _bytes(2, "rota") + _bytes(7, graph) + _bytes(8, _int(2, OPSET))


def metadata(data):
    """The text properties of a model file, such as the character set of a text recogniser."""
    properties = {}
    for field, message in _fields(data):
        if field == 14:
            entry = dict(_fields(message))
            properties[entry.get(1, b"").decode()] = entry.get(2, b"").decode()
    return properties


def _fields(data):
    """Every length-delimited field of a message as (number, bytes); the others are skipped."""
    place = 0
    while place < len(data):
        key, place = _read_varint(data, place)
        kind = key & 7
        if kind == 0:
            _, place = _read_varint(data, place)
        elif kind == 1:
            place += 8
        elif kind == 5:
            place += 4
        elif kind == 2:
            length, place = _read_varint(data, place)
            if place + length > len(data):
                raise ValueError("the file ends inside a field")
            yield key >> 3, data[place : place + length]
            place += length
        else:
            raise ValueError(f"wire type {kind} at byte {place} is none that ONNX uses")


def _read_varint(data, place):
    number = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError(f"a broken number at byte {place}")
        byte = data[place]
        number |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return number, place
        shift += 7
