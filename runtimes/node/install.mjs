// Installs a function's packages inside the base image, and sends them out as a ustar stream.
//
// Runs as `node --input-type=module --eval SOURCE -- MANIFEST TARGET [PROXY_SOCKET]` in a container without any network.
// MANIFEST is a package.json, a lock may stand beside it. What npm prints goes to stderr, the archive of the installed
// node_modules to stdout. With PROXY_SOCKET, npm reaches its registry through that Unix socket. With `--hosts` in place of
// all this, it prints the host that this image's npm takes packages from.
//
// Lifecycle scripts are not run: no code of a package runs before the function itself does.

import { spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';

const OURS = 'containerpub';
const BLOCK = 512;
const environment = { PATH: process.env.PATH, LANG: 'C.UTF-8' };

/** Pass every connection to a local port on to the Unix socket, because npm speaks to a proxy by TCP only. */
function forward(socketPath) {
  const server = net.createServer((near) => {
    const far = net.connect(socketPath);
    near.pipe(far).pipe(near);
    for (const [one, other] of [[near, far], [far, near]]) one.on('error', () => other.destroy());
  });
  return new Promise((done) => server.listen(0, '127.0.0.1', () => done(server)));
}

function npm(args, home) {
  const env = { ...environment, HOME: home, TMPDIR: home, npm_config_cache: path.join(home, 'cache') };
  return new Promise((done) => {
    const child = spawn('npm', args, { cwd: path.dirname(home), env, stdio: ['ignore', 2, 2] });
    child.on('error', (error) => {
      console.error(`npm cannot be started: ${error.message}`);
      done(127);
    });
    child.on('close', (code) => done(code ?? 1));
  });
}

async function install(manifest, target, proxySocket) {
  const work = path.join(target, '.work');
  const home = path.join(work, '.home');
  fs.mkdirSync(home, { recursive: true, mode: 0o700 });
  const lock = path.join(path.dirname(manifest), 'package-lock.json');
  const locked = fs.existsSync(lock);
  fs.copyFileSync(manifest, path.join(work, 'package.json'));
  if (locked) fs.copyFileSync(lock, path.join(work, 'package-lock.json'));
  const args = [
    locked ? 'ci' : 'install',
    ...['--omit=dev', '--ignore-scripts', '--no-audit', '--no-fund', '--no-update-notifier', '--no-progress'],
    ...['--no-color', '--loglevel=warn', '--install-links=false', '--bin-links=false', '--no-package-lock'],
    ...['--fetch-retries=2', '--fetch-timeout=20000', '--prefer-online=false'],
  ].filter((one) => !(locked && one === '--no-package-lock'));
  const server = proxySocket ? await forward(proxySocket) : null;
  if (server) args.push(`--proxy=http://127.0.0.1:${server.address().port}`, `--https-proxy=http://127.0.0.1:${server.address().port}`);
  const code = await npm(args, home);
  server?.close();
  if (code !== 0) return code;
  const installed = path.join(work, 'node_modules');
  if (fs.existsSync(installed)) {
    noteScripts(installed);
    send(installed);
  }
  fs.writeSync(1, Buffer.alloc(2 * BLOCK));
  return 0;
}

/** Say which packages have scripts that were not run: some of them may not work without. */
function noteScripts(installed) {
  const known = path.join(installed, '.package-lock.json');
  if (!fs.existsSync(known)) return;
  const { packages } = JSON.parse(fs.readFileSync(known, 'utf8'));
  for (const [place, entry] of Object.entries(packages)) {
    if (entry.hasInstallScript) console.error(`${place}: its install script was not run`);
  }
}

function field(header, at, size, value) {
  header.write(value.toString(8).padStart(size - 1, '0'), at, size - 1, 'ascii');
}

/** One ustar header, or null if the format cannot hold the name. */
function entry(name, kind, size, executable) {
  const header = Buffer.alloc(BLOCK);
  let [prefix, rest] = ['', name];
  if (Buffer.byteLength(name) > 100) {
    const parts = name.split('/');
    for (let cut = parts.length - 1; cut > 0; cut--) {
      prefix = parts.slice(0, cut).join('/');
      rest = parts.slice(cut).join('/');
      if (Buffer.byteLength(prefix) <= 155) break;
    }
    if (!rest || Buffer.byteLength(rest) > 100 || Buffer.byteLength(prefix) > 155) return null;
  }
  header.write(rest, 0);
  field(header, 100, 8, executable ? 0o755 : 0o644);
  field(header, 108, 8, 0);
  field(header, 116, 8, 0);
  field(header, 124, 12, size);
  field(header, 136, 12, 0);
  header.write('        ', 148);
  header.write(kind, 156);
  header.write('ustar\x0000', 257, 'latin1');
  header.write(prefix, 345);
  let sum = 0;
  for (const byte of header) sum += byte;
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return header;
}

/** Only plain files and folders, in the order of their names. */
function send(root, folder = '') {
  const found = fs.readdirSync(path.join(root, folder), { withFileTypes: true });
  for (const one of found.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const name = folder ? `${folder}/${one.name}` : one.name;
    // npm's own notes; and the platform's package, which stays the one that every sandbox has
    if (name === '.package-lock.json' || name === OURS) continue;
    const file = path.join(root, name);
    const stat = fs.lstatSync(file);
    if (!stat.isFile() && !stat.isDirectory()) {
      console.error(`left out ${name}: neither a file nor a folder`);
      continue;
    }
    const header = stat.isDirectory()
      ? entry(`${name}/`, '5', 0, true)
      : entry(name, '0', stat.size, (stat.mode & 0o111) !== 0);
    if (header === null) {
      console.error(`left out ${name}: its name is too long`);
      continue;
    }
    write(header);
    if (stat.isDirectory()) {
      send(root, name);
    } else {
      write(fs.readFileSync(file));
      write(Buffer.alloc((BLOCK - (stat.size % BLOCK)) % BLOCK));
    }
  }
}

function write(data) {
  for (let at = 0; at < data.length; ) {
    try {
      at += fs.writeSync(1, data, at);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}

function hosts() {
  const asked = spawnSync('npm', ['config', 'get', 'registry'], { env: { ...environment, HOME: '/tmp' }, encoding: 'utf8' });
  return new URL(asked.stdout.trim()).hostname;
}

if (process.argv[1] === '--hosts') {
  fs.writeSync(1, hosts());
} else {
  const [manifest, target, proxySocket] = process.argv.slice(1).map((one) => path.resolve(one));
  process.exitCode = await install(manifest, target, proxySocket);
}
