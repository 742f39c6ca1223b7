#!/usr/bin/env bash
# A developer's session with cast: deploy, call, send, read logs, subscribe.
#
#   session.sh HTTP_URL WEBSOCKET_URL SECRET_KEY ARTIFACT
#
# Prints one line of JSON with what it saw. Nothing here is special to the ledger: the same file runs on any EVM node.
set -euo pipefail
export ETH_RPC_URL=$1 socket_url=$2 key=$3 artifact=$4
export FOUNDRY_DISABLE_NIGHTLY_WARNING=1
cast=$(node -p 'require.resolve(`@foundry-rs/cast-${process.platform}-${process.arch === "x64" ? "amd64" : process.arch}/bin/cast`)')
payee=0x00000000000000000000000000000000000000Ee
transfer='Transfer(address indexed from, address indexed to, uint256 value)'

field() { node -p "JSON.parse(require('fs').readFileSync(0, 'utf8'))$1"; }
sent() { "$cast" send --json --poll-interval 1 --private-key "$key" "$@"; }

me=$("$cast" wallet address "$key")
code=$(field .bytecode <"$artifact")$("$cast" abi-encode 'constructor(address)' "$me" | cut -c3-)
deployed=$(sent --create "$code")
contract=$(field .contractAddress <<<"$deployed")
from=$("$cast" to-dec "$(field .blockNumber <<<"$deployed")")
[ "$("$cast" code "$contract")" != 0x ]

events=$(mktemp) said=$(mktemp)
trap 'rm -f "$events" "$said"; kill $(jobs -p) 2>/dev/null || true' EXIT
"$cast" logs --rpc-url "$socket_url" --subscribe --address "$contract" "$transfer" '' "$payee" >"$events" &
logs_job=$!
filter=$("$cast" rpc eth_newFilter "{\"address\":\"$contract\"}" | tr -d '"')

sent "$contract" 'mint(address,uint256)' "$me" 1000 >/dev/null
gas=$("$cast" estimate --from "$me" "$contract" 'transfer(address,uint256)' "$payee" 5)
nonce=$("$cast" nonce --block pending "$me")
# The subscription has begun when it reports: until then there is nothing to wait for but its process.
transfers=0
while [ "$(grep -c blockHash "$events" || true)" -lt 2 ]; do
  sent --gas-limit $((2 * gas)) --nonce $((nonce + transfers)) "$contract" 'transfer(address,uint256)' "$payee" 5 >/dev/null
  transfers=$((transfers + 1))
  kill -0 "$logs_job"
done

all=$("$cast" logs --json --from-block "$from" --address "$contract" "$transfer" | field .length)
polled=$("$cast" rpc eth_getFilterChanges "$filter" | field .length)
[ "$("$cast" rpc eth_uninstallFilter "$filter")" = true ]
history=$("$cast" rpc eth_feeHistory 0x3 latest '[25, 75]')
keys=$("$cast" access-list --json --from "$me" "$contract" 'transfer(address,uint256)' "$payee" 5 |
  field '.accessList.flatMap((item) => item.storageKeys).length')
refusal=none
error='ERC20InsufficientBalance(address,uint256,uint256)'
"$cast" call --from "$me" "$contract" 'transfer(address,uint256)' "$payee" 1000000000000000000000000 >/dev/null 2>"$said" ||
  { grep -q "$("$cast" sig "$error")" "$said" && refusal=${error%%(*}; }
balance=$("$cast" call "$contract" 'balanceOf(address)(uint256)' "$payee" | cut -d' ' -f1)
cat <<JSON
{"contract": "$contract", "balance": $balance, "transfers": $transfers, "logs": $all, "filter": $polled, \
"log_events": $(grep -c blockHash "$events"), "nonce": $("$cast" nonce --block pending "$me"), \
"fees": $(field .baseFeePerGas.length <<<"$history"), "rewards": $(field .reward.length <<<"$history"), \
"access_list_keys": $keys, "refusal": "$refusal"}
JSON
