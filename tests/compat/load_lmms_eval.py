"""Run by a test beside lmms-eval: what its model class answers to one image, by the checkpoint in a folder.

usage: python load_lmms_eval.py FOLDER IMAGE TEXT, prints {chat: answer, simple: answer} as the last line
"""

import json
import sys
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

import torchvision_operators  # noqa: F401


class Absent:
    """Stands in for what lmms-eval imports and neither its class nor this test uses."""

    names = ("loguru", "pytz", "evaluate")

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.split(".")[0] in self.names else None

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module):
        pass


sys.meta_path.append(Absent())

from lmms_eval.api.instance import Instance  # noqa: E402
from lmms_eval.models import get_model  # noqa: E402
from PIL import Image  # noqa: E402

folder, image, text = sys.argv[1], Image.open(sys.argv[2]).convert("RGB"), sys.argv[3]
options = {"max_new_tokens": 8}
content = [{"type": "image", "url": image}, {"type": "text", "text": text}]
media = {
    "simple": (options, lambda _: [image]),
    "chat": (
        lambda _: [{"role": "user", "content": [{"type": "image", "url": image}, {"type": "text", "text": text}]}],
        options,
    ),
}
answers = {}
for kind, arguments in media.items():
    model = get_model("llava_hf", force_simple=kind == "simple")(pretrained=folder, device="cpu", device_map="cpu")
    model.cache_hook, model.task_dict = MagicMock(), {"task": {"split": [{}]}}
    asked = Instance(
        "generate_until", (text, *arguments, 0, "task", "split"), 0, {"task": "task", "doc_id": 0, "repeats": 1}
    )
    [answer] = model.generate_until([asked])
    answers[kind] = getattr(answer, "text", answer)
print(json.dumps(answers))
