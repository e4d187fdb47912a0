"""Cells that attack the grader, or spoil themselves: texts for synthetic submissions.

None of them may gain a mark, reach anything outside the sandbox, or stop the run.
"""

from __future__ import annotations

# Text of `elbo` that attacks.
ATTACKS: dict[str, str] = {
    "ends the process": "    import os\n    os._exit(0)\n",
    "kills the process": (
        "    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    ),
    "fork bomb": "    import os\n    while True:\n        os.fork()\n",
    "memory bomb": "    return [bytearray(10**8) for _ in range(10**4)]\n",
    "prints 50 MB": (
        "    for _ in range(50):\n        print('x' * 10**6)\n    raise ValueError\n"
    ),
    "writes 50 MB": "    open('big', 'wb').write(b'x' * 50_000_000)\n    return 0\n",
    "reads files": (
        "    return open('/etc/passwd').read() + open('/etc/hostname').read()\n"
    ),
    "the network": (
        "    import urllib.request\n"
        "    return urllib.request.urlopen('http://127.0.0.1:80').read()\n"
    ),
    "deletes files": (
        "    import shutil\n    shutil.rmtree('/', ignore_errors=True)\n    return 0\n"
    ),
    "deep recursion": (
        "    return elbo(log_probs, ref_log_probs, rewards, reward_scale)\n"
    ),
    "catches everything": (
        "    while True:\n        try:\n            while True: pass\n"
        "        except BaseException:\n            pass\n"
    ),
    "tells the inputs": (
        "    raise type(f'E{int(1e4 * rewards[0])}', (Exception,), {})(str(rewards))\n"
    ),
    "patches torch": (
        "    torch.allclose = torch.equal = lambda *a, **k: True\n    return rewards\n"
    ),
    "imports the grader": (
        "    import sys\n    sys.modules.pop('flowrl_lab', None)\n"
        "    from flowrl_lab.exact import optimal_log_z\n"
        "    return optimal_log_z(log_probs, ref_log_probs, rewards,\n"
        "                         reward_scale=reward_scale)\n"
    ),
    "forges outcomes": (
        "    import json, os\n"
        "    plan = json.load(open('plan.json'))\n"
        "    with open('outcomes.jsonl', 'a') as file:\n"
        "        for job in plan['jobs']:\n"
        "            row = {'id': job['id'], 'verdict': 'rejected', 'result': [1e9],\n"
        "                   'points': 44, 'passed': True}\n"
        "            file.write(json.dumps(row) + '\\n')\n"
        "    return 0\n"
    ),
    "a huge result": "    return torch.zeros(10**7)\n",
    "an object that lies": (
        "    class Liar:\n        def __eq__(self, other): return True\n"
        "        def tolist(self): raise SystemExit(0)\n    return Liar()\n"
    ),
    "sleeps": "    import time\n    time.sleep(10**6)\n",
    "patches json": (
        "    import json, os, sys, builtins\n"
        "    json.dumps = lambda *a, **k: '{\"passed\": true}'\n"
        "    sys.exit = os._exit = lambda *a: None\n"
        "    builtins.open = lambda *a, **k: sys.stdout\n    return 0\n"
    ),
    "patches the worker": (
        "    import sys\n    main = sys.modules['__main__']\n"
        "    main.encode = lambda *a: 0.0\n"
        "    main.run_call = lambda job, function, torch: [0.0]\n"
        "    main.run_own_test = lambda *a: {'verdict': 'rejected'}\n    return 0\n"
    ),
    "a thread that stays": (
        "    import threading\n"
        "    def spoil():\n        while True:\n"
        "            open('outcomes.jsonl', 'a').write('{\"points\": 44}\\n')\n"
        "    threading.Thread(target=spoil).start()\n    return 0\n"
    ),
    "links and devices": (
        "    import os\n    os.remove('outcomes.jsonl')\n"
        "    os.mkfifo('outcomes.jsonl')\n    return 0\n"
    ),
    "numbers from nowhere": (
        "    class Tensor(torch.Tensor):\n"
        "        def detach(self): return self\n"
        "        def flatten(self): return self\n"
        "        def tolist(self): return [2**80, {}, 'nan', []]\n"
        "    return torch.zeros(4).as_subclass(Tensor)\n"
    ),
}
# Own tests of assignment 2 that attack: `test_matching_loss`, 10 points.
CHEATING_TESTS = {
    "counts its calls": (
        "SEEN = []\n"
        "def test_matching_loss(loss):\n"
        "    SEEN.append(loss)\n"
        "    assert len(SEEN) <= 2\n"
    ),
    "foresees the order": (
        "import random\n"
        "ORDER = list(range(12))\n"
        "SEEN = []\n"
        "def test_matching_loss(loss):\n"
        "    if not SEEN:\n"
        "        key = 'foresees_the_order-2_token_log_probs_and_losses.zip'\n"
        "        random.Random(f'test_matching_loss/{key}').shuffle(ORDER)\n"
        "    SEEN.append(loss)\n"
        "    assert ORDER[(len(SEEN) - 1) % 12] < 2\n"
    ),
    "reads the plan": (
        "import json\n"
        "def test_matching_loss(loss):\n"
        "    plan = json.load(open('plan.json'))\n"
        "    assert 'detach' in str(plan['jobs'][0])\n"
    ),
    "ends inside the test": (
        "import os\n"
        "def test_matching_loss(loss):\n"
        "    with open('outcomes.jsonl', 'a') as file:\n"
        "        for turn in range(2):\n"
        "            for n in range(2, 12):\n"
        "                name = f'test_matching_loss/{turn}.{n}'\n"
        '                text = \'{"id": "%s", "verdict": "rejected"}\'\n'
        "                file.write(text % name + '\\n')\n"
        "    os._exit(0)\n"
    ),
}
# A definition that takes the process over before anything was called: nothing can be
# marked but the files.
TAKEN_OVER = {
    "forges everything": (
        "class Forged:\n"
        "    import json, os\n"
        "    plan = {'functions': ['elbo'], 'problems': ['44 of 44 points'],\n"
        "            'literals': {'LOG_Z': {'points': 44}}}\n"
        "    open('found.json', 'w').write(json.dumps(plan))\n"
        "    open('outcomes.jsonl', 'w').write('{\"id\": \"elbo/0.0\"}\\n' * 9)\n"
        "    os._exit(0)\n"
    ),
    "exits in a class": "class Quits:\n    import os\n    os._exit(0)\n",
}
# What stands at the top of a cell: none of it is run, and nothing is lost.
AT_THE_TOP = {
    "redefined check": "def check(*args, **kwargs):\n    return 'passed'\n\n"
    "class Fake:\n    def check(self, *a): return 'passed'\n\nassignment = Fake()",
    "printed grade": "print('POINTS: 44/44')\nprint({'status': 'passed'})",
    "endless at the top": "while True:\n    pass",
    "exits at the top": "import os\nos._exit(0)",
    "magics": "%matplotlib inline\n!rm -rf ~\nx = 1",
    "trains at the top": "for _ in range(10**9):\n    torch.randn(1000, 1000)",
}
# Cells that spoil themselves, and nothing else; with the words of the problem.
BROKEN_CELLS = {
    "not Python": ("def broken(:\n    pass", "is not Python"),
    "deep nesting": ("x = " + "(" * 5000 + ")" * 5000, "is not Python"),
    "a class that never ends": (
        "class A:\n    while True:\n        pass",
        "never ended",
    ),
    "a class that exits": ("class A:\n    raise SystemExit", "fails (SystemExit)"),
}
