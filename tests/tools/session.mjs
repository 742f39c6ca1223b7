// A developer's session with viem, and the same with ethers: deploy, call, send, read logs, subscribe.
//
//   node session.mjs viem|ethers HTTP_URL WEBSOCKET_URL SECRET_KEY ARTIFACT
//
// Prints one line of JSON with what it saw. Nothing here is special to the ledger: the same file runs on any EVM node.
import { readFileSync } from "node:fs";
import * as ethers from "ethers";
import * as viem from "viem";
import { privateKeyToAccount } from "viem/accounts";

const [library, httpUrl, socketUrl, key, artifact] = process.argv.slice(2);
const { abi, bytecode } = JSON.parse(readFileSync(artifact, "utf8"));
const PAYEE = "0x00000000000000000000000000000000000000ee";

function check(holds, what) {
  if (!holds) throw new Error(`not so: ${what}`);
}

/** Collects events until as many have come as are waited for. */
class Events {
  #seen = [];
  #waiting = [];
  push = (event) => {
    this.#seen.push(event);
    this.#waiting = this.#waiting.filter(({ count, resolve }) => this.#seen.length < count || resolve(this.#seen));
  };
  async atLeast(count) {
    if (this.#seen.length >= count) return this.#seen;
    return new Promise((resolve) => this.#waiting.push({ count, resolve }));
  }
}

async function withViem() {
  const account = privateKeyToAccount(key);
  const options = { pollingInterval: 50 };
  const reader = viem.createPublicClient({ transport: viem.http(httpUrl), ...options });
  const chain = viem.defineChain({
    id: await reader.getChainId(),
    name: "ledger",
    nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 },
    rpcUrls: { default: { http: [httpUrl] } },
  });
  const writer = viem.createWalletClient({ account, chain, transport: viem.http(httpUrl), ...options });
  const socket = viem.createPublicClient({ chain, transport: viem.webSocket(socketUrl), ...options });

  const done = (hash) => reader.waitForTransactionReceipt({ hash });
  const deployed = await done(await writer.deployContract({ abi, bytecode, args: [account.address] }));
  const contract = { address: deployed.contractAddress, abi };
  check((await reader.getCode(contract)).length > 2, "the contract has code");

  const heads = new Events();
  const logs = new Events();
  const endHeads = socket.watchBlocks({ onBlock: heads.push });
  const endLogs = socket.watchContractEvent({
    ...contract,
    eventName: "Transfer",
    args: { to: PAYEE },
    onLogs: (some) => some.forEach(logs.push),
  });
  // Ordered behind the two subscriptions on the same connection.
  await socket.getBlockNumber();
  const filter = await reader.createContractEventFilter({ ...contract, eventName: "Transfer" });

  const mint = { ...contract, functionName: "mint", args: [account.address, 1000n] };
  await done(await writer.writeContract((await reader.simulateContract({ account, ...mint })).request));
  const transfer = { ...contract, functionName: "transfer", args: [PAYEE, 5n] };
  const gas = await reader.estimateContractGas({ account, ...transfer });
  const nonce = await reader.getTransactionCount({ address: account.address, blockTag: "pending" });
  const hashes = [];
  for (const i of [0, 1]) hashes.push(await writer.writeContract({ ...transfer, gas: gas * 2n, nonce: nonce + i }));
  const receipts = [await done(hashes[0]), await done(hashes[1])];
  check(receipts.every((receipt) => receipt.status === "success" && receipt.logs.length === 1), "both are executed");

  const events = await reader.getContractEvents({ ...contract, eventName: "Transfer", fromBlock: deployed.blockNumber });
  const polled = await reader.getFilterChanges({ filter });
  check((await reader.getFilterChanges({ filter })).length === 0, "the filter reports nothing twice");
  check(await reader.uninstallFilter({ filter }), "the filter was there");
  const pushed = await logs.atLeast(2);
  check(pushed[1].transactionHash === hashes[1], "the last event is that of the last transaction");
  const blocks = await heads.atLeast(2);
  endHeads();
  endLogs();

  const history = await reader.getFeeHistory({ blockCount: 3, rewardPercentiles: [25, 75] });
  const data = viem.encodeFunctionData(transfer);
  const list = await reader.createAccessList({ account, to: contract.address, data });
  let refusal = "none";
  const tooMuch = { account, ...transfer, args: [PAYEE, 10n ** 30n] };
  await reader.simulateContract(tooMuch).catch((error) => {
    refusal = error.walk((e) => e instanceof viem.ContractFunctionRevertedError).data.errorName;
  });
  const balance = await reader.readContract({ ...contract, functionName: "balanceOf", args: [PAYEE] });
  const feesOf = await reader.getBlock({ blockTag: "latest", includeTransactions: true });
  check(feesOf.baseFeePerGas > 0n, "a block has a base fee");
  // The socket is closed with the process.
  return {
    contract: contract.address,
    balance: Number(balance),
    logs: events.length,
    filter: polled.length,
    log_events: pushed.length,
    head_events: blocks.length,
    nonce: await reader.getTransactionCount({ address: account.address, blockTag: "pending" }),
    fees: history.baseFeePerGas.length,
    rewards: history.reward.length,
    access_list_keys: list.accessList.flatMap((item) => item.storageKeys).length,
    refusal,
  };
}

async function withEthers() {
  // Without its cache, which keeps nonces for longer than a block takes here.
  const reader = new ethers.JsonRpcProvider(httpUrl, undefined, { cacheTimeout: -1 });
  reader.pollingInterval = 50;
  const socket = new ethers.WebSocketProvider(socketUrl);
  const account = new ethers.Wallet(key, reader);
  const contract = await new ethers.ContractFactory(abi, bytecode, account).deploy(account.address);
  await contract.waitForDeployment();
  const address = await contract.getAddress();

  const heads = new Events();
  const logs = new Events();
  await socket.on("block", heads.push);
  await new ethers.Contract(address, abi, socket).on(contract.filters.Transfer(null, PAYEE), (...all) => logs.push(all));
  await socket.getBlockNumber();
  // Kept by the node: what ethers calls a filter otherwise is a search.
  const filter = await reader.send("eth_newFilter", [{ address, topics: await contract.filters.Transfer().getTopicFilter() }]);

  await (await contract.mint(account.address, 1000)).wait();
  const gas = await contract.transfer.estimateGas(PAYEE, 5);
  const nonce = await reader.getTransactionCount(account.address, "pending");
  const sent = [];
  for (const i of [0, 1]) sent.push(await contract.transfer(PAYEE, 5, { gasLimit: gas * 2n, nonce: nonce + i }));
  for (const one of sent) check((await one.wait()).status === 1, "it is executed");

  const events = await contract.queryFilter(contract.filters.Transfer());
  const polled = await reader.send("eth_getFilterChanges", [filter]);
  check(await reader.send("eth_uninstallFilter", [filter]), "the filter was there");
  const pushed = await logs.atLeast(2);
  const blocks = await heads.atLeast(2);
  const history = await reader.send("eth_feeHistory", ["0x3", "latest", [25, 75]]);
  const call = await contract.transfer.populateTransaction(PAYEE, 5);
  const list = await reader.send("eth_createAccessList", [{ from: account.address, to: call.to, data: call.data }, "latest"]);
  let refusal = "none";
  await contract.transfer.staticCall(PAYEE, 10n ** 30n).catch((error) => (refusal = error.revert.name));
  return {
    contract: address,
    balance: Number(await contract.balanceOf(PAYEE)),
    logs: events.length,
    filter: polled.length,
    log_events: pushed.length,
    head_events: blocks.length,
    nonce: await reader.getTransactionCount(account.address, "pending"),
    fees: history.baseFeePerGas.length,
    rewards: history.reward.length,
    access_list_keys: list.accessList.flatMap((item) => item.storageKeys).length,
    refusal,
  };
}

const facts = await { viem: withViem, ethers: withEthers }[library]();
console.log(JSON.stringify(facts));
process.exit(0);
