"""A developer's session with web3.py: deploy, call, send, read logs, subscribe.

    python session.py HTTP_URL WEBSOCKET_URL SECRET_KEY ARTIFACT

Prints one line of JSON with what it saw. Nothing here is special to the ledger: the same file runs on any EVM node.
"""

import asyncio
import json
import sys

from web3 import AsyncWeb3, HTTPProvider, Web3, WebSocketProvider
from web3.exceptions import ContractCustomError

PAYEE = "0x00000000000000000000000000000000000000EE"


async def main(http_url, socket_url, key, artifact):
    with open(artifact) as file:
        artifact = json.load(file)
    w3 = Web3(HTTPProvider(http_url))
    account = w3.eth.account.from_key(key)
    w3.eth.default_account = account.address

    def send(call, **fields):
        nonce = w3.eth.get_transaction_count(account.address, "pending")
        transaction = call.build_transaction({"nonce": nonce, **fields})
        return w3.eth.send_raw_transaction(account.sign_transaction(transaction).raw_transaction)

    def done(transaction):
        receipt = w3.eth.wait_for_transaction_receipt(transaction, poll_latency=0.05)
        assert receipt["status"] == 1, receipt
        return receipt

    factory = w3.eth.contract(abi=artifact["abi"], bytecode=artifact["bytecode"])
    deployed = done(send(factory.constructor(account.address)))
    contract = w3.eth.contract(address=deployed["contractAddress"], abi=artifact["abi"])
    transfer = contract.functions.transfer(Web3.to_checksum_address(PAYEE), 5)

    async with AsyncWeb3(WebSocketProvider(socket_url)) as socket:
        heads = await socket.eth.subscribe("newHeads")
        topics = [contract.events.Transfer().topic, None, "0x" + PAYEE[2:].lower().rjust(64, "0")]
        logs = await socket.eth.subscribe("logs", {"address": contract.address, "topics": topics})
        kept = contract.events.Transfer.create_filter(from_block="latest")

        done(send(contract.functions.mint(account.address, 1000)))
        gas = transfer.estimate_gas()
        hashes = [send(transfer, gas=2 * gas) for _ in range(2)]
        for one in hashes:
            done(one)
        polled = kept.get_new_entries()
        assert w3.eth.uninstall_filter(kept.filter_id)

        head_events, log_events = [], []
        async for message in socket.socket.process_subscriptions():
            {heads: head_events, logs: log_events}[message["subscription"]].append(message["result"])
            if len(head_events) >= 2 and len(log_events) >= 2:
                break
        assert log_events[1]["transactionHash"] == hashes[1]
        assert await socket.eth.unsubscribe(heads)

    found = contract.events.Transfer().get_logs(from_block=deployed["blockNumber"])
    history = w3.eth.fee_history(3, "latest", [25, 75])
    call = transfer.build_transaction({"gas": gas})
    access_list = w3.eth.create_access_list({"from": account.address, "to": contract.address, "data": call["data"]})
    refusal = "none"
    try:
        contract.functions.transfer(Web3.to_checksum_address(PAYEE), 10**30).call()
    except ContractCustomError as error:
        named = {Web3.keccak(text=signature(each))[:4].hex(): each["name"] for each in artifact["abi"] if each["type"] == "error"}
        refusal = named[error.data[2:10]]
    return {
        "contract": contract.address,
        "balance": contract.functions.balanceOf(Web3.to_checksum_address(PAYEE)).call(),
        "logs": len(found),
        "filter": len(polled),
        "log_events": len(log_events),
        "head_events": len(head_events),
        "nonce": w3.eth.get_transaction_count(account.address, "pending"),
        "fees": len(history["baseFeePerGas"]),
        "rewards": len(history["reward"]),
        "access_list_keys": sum(len(item["storageKeys"]) for item in access_list["accessList"]),
        "refusal": refusal,
    }


def signature(error):
    return error["name"] + "(" + ",".join(each["type"] for each in error["inputs"]) + ")"


print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
