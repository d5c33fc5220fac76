// An OpenID provider on a free loopback port, from the library that many are built with: oidc-provider.
// Prints its issuer as one line of JSON. POST /-/new-keys makes it sign with fresh keys, and publish only those.

import { generateKeyPair } from 'node:crypto';
import { createServer } from 'node:http';
import { promisify } from 'node:util';
import Provider from 'oidc-provider';

const REDIRECT_URI = 'http://127.0.0.1:9/callback';
const API = 'urn:example:api';
const KINDS = {
  RS256: ['rsa', { modulusLength: 2048 }],
  ES256: ['ec', { namedCurve: 'P-256' }],
  EdDSA: ['ed25519', {}],
};
const ALGORITHMS = ['RS256', 'PS256', 'ES256', 'EdDSA'];

/** A fresh private key as JWK; PS256 takes the RSA key, too. */
async function newKey(algorithm) {
  const { privateKey } = await promisify(generateKeyPair)(...KINDS[algorithm]);
  return { ...privateKey.export({ format: 'jwk' }), use: 'sig' };
}

/** A client for each algorithm that ID tokens can be signed with; its id is the algorithm's name. */
const clients = ALGORITHMS.map((algorithm) => ({
  client_id: `app-${algorithm}`,
  client_secret: 'not-a-secret-at-all',
  redirect_uris: [REDIRECT_URI],
  id_token_signed_response_alg: algorithm,
}));

async function newProvider(issuer) {
  const keys = await Promise.all(Object.keys(KINDS).map(newKey));
  const provider = new Provider(issuer, {
    clients,
    jwks: { keys },
    cookies: { keys: ['not-a-secret-either'] },
    enabledJWA: { idTokenSigningAlgValues: ALGORITHMS },
    features: {
      devInteractions: { enabled: true },
      resourceIndicators: {
        enabled: true,
        // Its access tokens are JWTs that have the client's id as audience, as an ID token has.
        getResourceServerInfo: (ctx, resource, client) => ({
          scope: 'api',
          audience: client.clientId,
          accessTokenFormat: 'jwt',
        }),
        useGrantedResource: () => true,
      },
    },
  });
  return provider.callback();
}

let handle;
const server = createServer(async (request, response) => {
  if (request.url === '/-/new-keys') {
    handle = await newProvider(issuer);
    response.end();
  } else {
    handle(request, response);
  }
});
server.listen(Number(process.argv[2] ?? 0), '127.0.0.1');
await new Promise((resolve) => server.once('listening', resolve));
const issuer = `http://127.0.0.1:${server.address().port}`;
handle = await newProvider(issuer);
console.log(JSON.stringify({ issuer, redirect_uri: REDIRECT_URI, api: API }));
process.stdin.resume().once('end', () => process.exit());
