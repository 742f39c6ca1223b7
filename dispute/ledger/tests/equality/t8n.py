"""The state transition tool of the Ethereum reference implementation, one block per line.

Reads a JSON object with `chain_id`, `alloc`, `env` and `txs` per line and answers with what `ethereum-spec-evm t8n` prints for it,
on one line. Starting the tool takes longer than a block, so one process does them all.
"""

import io
import json
import logging
import sys

from ethereum_spec_tools.evm_tools import main

ARGUMENTS = [
    "t8n",
    "--input.alloc=stdin",
    "--input.env=stdin",
    "--input.txs=stdin",
    "--output.alloc=stdout",
    "--output.result=stdout",
    "--state.fork=Cancun",
    # No block reward: after the merge there is none.
    "--state.reward=-1",
]

# Each rejected transaction would be a line of log.
logging.disable(logging.WARNING)

for line in sys.stdin:
    answer = io.StringIO()
    chain = f"--state.chainid={json.loads(line)['chain_id']}"
    status = main(args=[*ARGUMENTS, chain], out_file=answer, in_file=io.StringIO(line))
    if status:
        sys.exit(f"t8n ends with status {status}")
    output = json.loads(answer.getvalue())
    print(json.dumps({"result": output["result"]}), flush=True)
