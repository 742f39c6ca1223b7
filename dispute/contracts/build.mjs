// Compiles the contracts with the pinned compiler and writes `artifacts/<Name>.json`, which are committed so that `cargo build` needs no Node.
//
//   node build.mjs           compile and write the artifacts
//   node build.mjs --check   compile and compare; exit code 1 and one line per difference
//
// The output depends on the sources, the compiler and the settings below, on nothing else: no absolute path, no time, no metadata hash.

import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, unlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const require = createRequire(import.meta.url);
const root = dirname(fileURLToPath(import.meta.url));
const artifactsDir = join(root, "artifacts");
const check = process.argv.includes("--check");

/** Everything that decides the bytecode besides the sources. Cancun, because every ledger that we run on speaks it and the compiler's default is newer. */
const settings = {
  evmVersion: "cancun",
  viaIR: true,
  // 1,000 runs leave room for changes: 2,000 save 0.2 to 1.6 % of gas and leave 112 bytes below the code size limit.
  optimizer: { enabled: true, runs: 1_000 },
  metadata: { bytecodeHash: "none", appendCBOR: false },
};

/** The contracts whose artifacts are published. */
const published = { IAdjudicator: "IAdjudicator.sol", Adjudicator: "Adjudicator.sol", Vault: "Vault.sol", TestDollar: "TestDollar.sol" };

/** Largest runtime code that a chain accepts (EIP-170). */
const codeBytesMax = 24_576;

function fail(message) {
  console.error(message);
  process.exit(1);
}

function loadCompiler() {
  try {
    return require("solc");
  } catch {
    return fail("build.mjs: the compiler is not installed; run `npm ci` beside this file first");
  }
}

/** Our own source files, by path relative to this folder, in a fixed order. */
function ownSources() {
  const files = ["", "verifiers"]
    .flatMap((folder) =>
      existsSync(join(root, folder)) ? readdirSync(join(root, folder)).map((name) => (folder ? `${folder}/${name}` : name)) : [],
    )
    .filter((name) => name.endsWith(".sol"))
    .sort();
  return Object.fromEntries(files.map((name) => [name, readFileSync(join(root, name), "utf8")]));
}

function compile(solc, sources) {
  const resolved = {};
  const load = (path) => {
    try {
      const contents = readFileSync(path.startsWith("@") ? join(root, "node_modules", path) : join(root, path), "utf8");
      resolved[path] = contents;
      return { contents };
    } catch {
      return { error: `no such source: ${path}` };
    }
  };
  const input = {
    language: "Solidity",
    sources: Object.fromEntries(Object.entries(sources).map(([name, content]) => [name, { content }])),
    settings: { ...settings, outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] } } },
  };
  const output = JSON.parse(solc.compile(JSON.stringify(input), { import: load }));
  const messages = (output.errors ?? []).filter((e) => e.severity === "error" || e.sourceLocation?.file?.startsWith("@") !== true);
  if (messages.length > 0) fail(messages.map((e) => e.formattedMessage).join("\n"));
  return { contracts: output.contracts, all: { ...resolved, ...sources } };
}

/** SHA-256 over compiler, settings, and every source (libraries included) in order of its name. */
function hashSources(solc, all) {
  const hash = createHash("sha256");
  hash.update(JSON.stringify({ compiler: solc.version(), settings }));
  for (const name of Object.keys(all).sort()) hash.update(`\0${name}\0${all[name]}`);
  return hash.digest("hex");
}

/** SHA-256 over our own sources alone, in order of their names: what can be checked without the libraries and without Node. */
function hashOwnSources(sources) {
  const hash = createHash("sha256");
  for (const name of Object.keys(sources).sort()) hash.update(`\0${name}\0${sources[name]}`);
  return hash.digest("hex");
}

function artifactsOf(contracts, hashes) {
  const files = {};
  for (const [name, file] of Object.entries(published)) {
    const contract = contracts[file]?.[name];
    if (!contract) fail(`${file}: no contract ${name}; correct the list of published contracts in build.mjs`);
    const deployed = contract.evm.deployedBytecode.object;
    if (deployed.length / 2 > codeBytesMax) fail(`${name}: ${deployed.length / 2} bytes of code, a chain accepts ${codeBytesMax}`);
    const artifact = { abi: contract.abi, bytecode: `0x${contract.evm.bytecode.object}`, deployedBytecode: `0x${deployed}`, ...hashes };
    files[`${name}.json`] = `${JSON.stringify(artifact, null, 1)}\n`;
  }
  return files;
}

function compare(files) {
  const stored = existsSync(artifactsDir) ? readdirSync(artifactsDir).filter((name) => name.endsWith(".json")) : [];
  const names = [...new Set([...Object.keys(files), ...stored])].sort();
  const differences = names.flatMap((name) => {
    if (!(name in files)) return [`artifacts/${name}: not produced by any contract`];
    if (!stored.includes(name)) return [`artifacts/${name}: missing`];
    return readFileSync(join(artifactsDir, name), "utf8") === files[name] ? [] : [`artifacts/${name}: differs from what the sources compile to`];
  });
  if (differences.length > 0) fail(`${differences.join("\n")}\nRun \`node build.mjs\` and commit the result.`);
  console.log(`${names.length} artifacts equal their sources`);
}

function write(files) {
  mkdirSync(artifactsDir, { recursive: true });
  for (const name of readdirSync(artifactsDir)) if (!(name in files)) unlinkSync(join(artifactsDir, name));
  for (const [name, text] of Object.entries(files)) {
    writeFileSync(join(artifactsDir, name), text);
    console.log(`artifacts/${name}: ${(JSON.parse(text).deployedBytecode.length - 2) / 2} bytes of code`);
  }
}

const solc = loadCompiler();
const sources = ownSources();
const { contracts, all } = compile(solc, sources);
const files = artifactsOf(contracts, { sourcesHash: hashSources(solc, all), ownSourcesHash: hashOwnSources(sources) });
if (check) compare(files);
else write(files);
